// SPDX-License-Identifier: Apache-2.0

// Package acl says who may use which key for what, how often: the access rules
// of a worker, a strict YAML file. What no rule allows is denied.
//
// Rules are immutable and may be read by any goroutine; a new file makes new
// Rules, which take the state of the rate limits over. A Grant is what they
// say about one client and key, and may be kept for as long as they are in
// force.
package acl

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"pno/crypto/signing"
	"pno/internal/config"
)

// Rule allows the clients that it names the use of the keys that it names.
type Rule struct {
	Clients   []string `yaml:"clients"`
	Keys      []string `yaml:"keys"`
	Schemes   []string `yaml:"schemes"`
	Rate      float64  `yaml:"rate"`
	Burst     int      `yaml:"burst"`
	TLS13Only bool     `yaml:"tls13_only"`
	Premaster bool     `yaml:"tls12_premaster"`

	line    int
	schemes []signing.Scheme
}

// SetLine is called by the loader.
func (r *Rule) SetLine(n int) { r.line = n }

// Validate is called by the loader.
func (r *Rule) Validate() error {
	switch {
	case len(r.Clients) == 0:
		return errors.New(`a rule needs clients, as ["spiffe://example/proxy/*"]`)
	case len(r.Keys) == 0:
		return errors.New(`a rule needs keys: names or ids, or ["*"]`)
	case r.Schemes != nil && len(r.Schemes) == 0:
		return config.At("schemes", errors.New(`an empty list allows nothing; name the schemes, or remove the key to allow all`))
	case r.Rate < 0 || r.Rate > 1e9:
		return config.At("rate", fmt.Errorf("%g operations a second, want 0 (no limit) to 1e9", r.Rate))
	case r.Burst < 0 || r.Burst > 1e9:
		return config.At("burst", fmt.Errorf("%d operations, want 0 (as many as a second of the rate) to 1e9", r.Burst))
	case r.Burst > 0 && r.Rate == 0:
		return config.At("burst", errors.New("a burst without a rate means nothing; give a rate"))
	case r.TLS13Only && r.Premaster:
		return config.At("tls12_premaster", errors.New("a rule that is tls13_only cannot allow it"))
	}
	for _, c := range r.Clients {
		if err := CheckPattern(c); err != nil {
			return config.At("clients", err)
		}
	}
	r.schemes = nil
	for _, s := range r.Schemes {
		var scheme signing.Scheme
		if s == "*" {
			r.schemes = append(r.schemes, signing.Schemes()...)
		} else if err := scheme.UnmarshalText([]byte(s)); err != nil {
			return config.At("schemes", err)
		} else {
			r.schemes = append(r.schemes, scheme)
		}
	}
	if r.Schemes == nil {
		r.schemes = signing.Schemes()
	}
	return nil
}

// CheckPattern wants a URI that says who it means: with a scheme and a host,
// and a star at the very end or nowhere. What the star stands for is a part of
// the path: before the first slash it would be a part of the host's name, and
// mean everybody whose name begins like that.
func CheckPattern(p string) error {
	prefix, star := strings.CutSuffix(p, "*")
	u, err := url.Parse(prefix)
	if err != nil || u.Scheme == "" || u.Host == "" || strings.Contains(prefix, "*") {
		return fmt.Errorf("%q is not a client; write the URI of its certificate, as spiffe://example/proxy/1, or with a star at the end", p)
	}
	if star && u.Path == "" {
		return fmt.Errorf("%q means other hosts, too, as %s.evil; write %s/* for all of this one", p, prefix, prefix)
	}
	return nil
}

// Match tells whether an identity is one that the pattern means.
func Match(pattern, identity string) bool {
	if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(identity, prefix)
	}
	return pattern == identity
}

// file is the form on disk.
type file struct {
	Rules   []Rule   `yaml:"rules"`
	Revoked []string `yaml:"revoked"`
}

// Validate is called by the loader.
func (f *file) Validate() error {
	for _, r := range f.Revoked {
		kind, b, err := revokedEntry(r)
		if err != nil || len(b) == 0 || kind != "serial" && (kind != "sha256" || len(b) != sha256.Size) {
			return config.At("revoked", fmt.Errorf("%q names no certificate; write serial:HEX or sha256:HEX of its DER", r))
		}
	}
	if f.Rules == nil {
		return errors.New("no rules; write rules: [] to deny everything") // a file that is being written is empty for a moment
	}
	return nil
}

// revokedEntry takes an entry apart. A serial number is a number: tools print
// it with or without its leading zero.
func revokedEntry(entry string) (kind string, b []byte, err error) {
	kind, digits, _ := strings.Cut(entry, ":")
	if kind == "serial" && len(digits)%2 == 1 {
		digits = "0" + digits
	}
	b, err = hex.DecodeString(digits)
	return kind, b, err
}

// Rules is a file of rules in force.
type Rules struct {
	rules   []Rule
	serials map[string]bool            // revoked, as numbers
	sums    map[[sha256.Size]byte]bool // likewise, of the DER

	mu      sync.Mutex
	buckets map[bucketKey]*bucket
}

// bucketKey holds the limit too, so that a changed limit begins afresh.
type bucketKey struct {
	client string
	key    signing.KeyID
	rate   float64
	burst  int
}

// Load reads a file.
func Load(path string) (*Rules, error) {
	var f file
	if err := config.Load(path, &f); err != nil {
		return nil, err
	}
	return newRules(f), nil
}

// Parse is Load for text.
func Parse(name string, text []byte) (*Rules, error) {
	var f file
	if err := config.Parse(name, text, &f); err != nil {
		return nil, err
	}
	return newRules(f), nil
}

func newRules(f file) *Rules {
	r := &Rules{rules: f.Rules, serials: map[string]bool{}, sums: map[[sha256.Size]byte]bool{}, buckets: map[bucketKey]*bucket{}}
	for _, entry := range f.Revoked {
		switch kind, b, _ := revokedEntry(entry); kind { // Validate has seen them all
		case "serial":
			r.serials[string(bytes.TrimLeft(b, "\x00"))] = true
		case "sha256":
			r.sums[[sha256.Size]byte(b)] = true
		}
	}
	return r
}

// Inherit takes over how much of each limit is used up. A limit of which nothing
// is used is like one that is new, and is forgotten: clients and keys come and go.
func (r *Rules) Inherit(from *Rules, now time.Time) {
	if from == nil {
		return
	}
	from.mu.Lock()
	defer from.mu.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	for k, b := range from.buckets {
		if !b.full(now) {
			r.buckets[k] = b
		}
	}
}

// Len is the number of rules.
func (r *Rules) Len() int { return len(r.rules) }

// Revoked tells whether a certificate is.
func (r *Rules) Revoked(cert *x509.Certificate) bool {
	return len(r.serials) > 0 && r.serials[string(cert.SerialNumber.Bytes())] || len(r.sums) > 0 && r.sums[sha256.Sum256(cert.Raw)]
}

// Grant is what the rules say about one client and one key.
type Grant struct {
	rule   *Rule
	bucket *bucket
}

// Grant finds the first rule for a client and a key.
func (r *Rules) Grant(client string, key signing.KeyID, name string) Grant {
	for i := range r.rules {
		rule := &r.rules[i]
		if !slices.ContainsFunc(rule.Clients, func(p string) bool { return Match(p, client) }) {
			continue
		}
		id := key.String()
		if !slices.ContainsFunc(rule.Keys, func(k string) bool { return k == "*" || k == name || strings.EqualFold(k, id) }) {
			continue
		}
		return Grant{rule, r.bucket(client, key, rule)}
	}
	return Grant{}
}

func (r *Rules) bucket(client string, key signing.KeyID, rule *Rule) *bucket {
	if rule.Rate == 0 {
		return nil
	}
	burst := rule.Burst
	if burst == 0 {
		burst = max(1, int(rule.Rate))
	}
	k := bucketKey{client, key, rule.Rate, burst}
	r.mu.Lock()
	defer r.mu.Unlock()
	b := r.buckets[k]
	if b == nil {
		b = &bucket{rate: rule.Rate, burst: float64(burst), tokens: float64(burst)}
		r.buckets[k] = b
	}
	return b
}

// Any tells whether the client may use the key for anything.
func (g Grant) Any() bool { return g.rule != nil }

// Check decides about one operation; what it allows counts against the rate.
func (g Grant) Check(req *signing.Request, now time.Time) *signing.Error {
	if g.rule == nil {
		return signing.Errorf(signing.Denied, "no access rule for this client and key")
	}
	transcript := req.Input == signing.TLS13Server || req.Input == signing.TLS13Client
	switch {
	case req.Input == signing.TLS12Premaster && !g.rule.Premaster:
		return signing.Errorf(signing.Denied, "the access rules do not allow decryption")
	case g.rule.TLS13Only && !transcript:
		return signing.Errorf(signing.Denied, "the access rules allow TLS 1.3 transcripts only")
	case req.Input != signing.TLS12Premaster && req.Scheme.Known() && !slices.Contains(g.rule.schemes, req.Scheme):
		return signing.Errorf(signing.Denied, "the access rules do not allow %v", req.Scheme)
	case g.bucket != nil && !g.bucket.take(now):
		return signing.Errorf(signing.RateLimited, "more than %g operations a second", g.rule.Rate)
	}
	return nil
}

// bucket is a token bucket.
type bucket struct {
	mu     sync.Mutex
	rate   float64
	burst  float64
	tokens float64
	last   time.Time
}

func (b *bucket) full(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.last.IsZero() || b.tokens+now.Sub(b.last).Seconds()*b.rate >= b.burst
}

func (b *bucket) take(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.last.IsZero() && now.After(b.last) {
		b.tokens = min(b.burst, b.tokens+now.Sub(b.last).Seconds()*b.rate)
	}
	if now.After(b.last) {
		b.last = now
	}
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

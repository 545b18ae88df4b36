// SPDX-License-Identifier: Apache-2.0

package acl

import (
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"math/big"
	"testing"
	"time"

	"pno/crypto/signing"
)

var key1, key2 = signing.KeyID{1}, signing.KeyID{2}

func parse(t *testing.T, text string) *Rules {
	t.Helper()
	r, err := Parse("acl", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestCheck(t *testing.T) {
	rules := parse(t, fmt.Sprintf(`
rules:
  - clients: ["spiffe://pno/proxy/1"]
    keys: [shop]
    schemes: [rsa_pss_rsae_sha256]
  - clients: ["spiffe://pno/proxy/*"]
    keys: ["%v"]
    tls13_only: true
  - clients: ["spiffe://pno/legacy"]
    keys: ["*"]
    schemes: ["*"]
    tls12_premaster: true
`, key2))
	const one, two, legacy = "spiffe://pno/proxy/1", "spiffe://pno/proxy/2", "spiffe://pno/legacy"
	tests := []struct {
		name, client string
		key          signing.KeyID
		keyName      string
		scheme       signing.Scheme
		input        signing.Input
		want         signing.Status
	}{
		{"by name", one, key1, "shop", signing.RSAPSSSHA256, signing.Digest, signing.OK},
		{"another scheme", one, key1, "shop", signing.RSAPKCS1SHA256, signing.Digest, signing.Denied},
		{"another client", two, key1, "shop", signing.RSAPSSSHA256, signing.Digest, signing.Denied},
		{"another key", one, key1, "bank", signing.RSAPSSSHA256, signing.Digest, signing.Denied},
		{"prefix and id, transcript", two, key2, "x", signing.RSAPSSSHA256, signing.TLS13Server, signing.OK},
		{"prefix and id, digest", two, key2, "x", signing.RSAPSSSHA256, signing.Digest, signing.Denied},
		{"premaster off", one, key1, "shop", 0x0303, signing.TLS12Premaster, signing.Denied},
		{"premaster on", legacy, key1, "shop", 0x0303, signing.TLS12Premaster, signing.OK},
		{"nobody", "", key1, "shop", signing.RSAPSSSHA256, signing.Digest, signing.Denied},
		{"prefix of a name", "spiffe://pno/legacy2", key1, "shop", signing.RSAPSSSHA256, signing.Digest, signing.Denied},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := signing.OK
			if err := rules.Grant(tt.client, tt.key, tt.keyName).Check(&signing.Request{Scheme: tt.scheme, Input: tt.input}, time.Now()); err != nil {
				got = err.Status
			}
			if got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

func TestMatch(t *testing.T) {
	for _, tt := range []struct {
		pattern, identity string
		want              bool
	}{
		{"spiffe://example/*", "spiffe://example/proxy/1", true},
		{"spiffe://example/*", "spiffe://example.evil/proxy/1", false},
		{"spiffe://example/proxy/edge-*", "spiffe://example/proxy/edge-1", true},
		{"spiffe://example/proxy/edge-*", "spiffe://example/proxy/core-1", false},
		{"spiffe://example/proxy", "spiffe://example/proxy/1", false},
	} {
		if err := CheckPattern(tt.pattern); err != nil {
			t.Error(err)
		}
		if got := Match(tt.pattern, tt.identity); got != tt.want {
			t.Errorf("%s means %s: %v", tt.pattern, tt.identity, got)
		}
	}
}

func TestRate(t *testing.T) {
	const text = "rules:\n- {clients: [\"spiffe://a/b\"], keys: [\"*\"], rate: 10, burst: 3}\n"
	rules := parse(t, text)
	now := time.Unix(1000, 0)
	allowed := func(r *Rules, key signing.KeyID, n int) int {
		ok := 0
		for range n {
			if r.Grant("spiffe://a/b", key, "").Check(&signing.Request{Scheme: signing.Ed25519, Input: signing.Message}, now) == nil {
				ok++
			}
		}
		return ok
	}
	if n := allowed(rules, key1, 5); n != 3 {
		t.Errorf("%d of a burst", n)
	}
	if n := allowed(rules, key2, 5); n != 3 {
		t.Errorf("%d of a burst of another key", n)
	}
	now = now.Add(200 * time.Millisecond)
	again := parse(t, text)
	again.Inherit(rules, now)
	if n := allowed(again, key1, 5); n != 2 {
		t.Errorf("%d after 200 ms and a reload", n)
	}
	now = now.Add(-time.Hour)
	if n := allowed(again, key1, 5); n != 0 {
		t.Errorf("%d after the clock went back", n)
	}
	// Limits at rest are forgotten, those in use not.
	now = now.Add(10 * time.Hour)
	if n := allowed(again, key2, 1); n != 1 {
		t.Errorf("%d after hours", n)
	}
	third := parse(t, text)
	third.Inherit(again, now)
	if len(again.buckets) != 2 || len(third.buckets) != 1 {
		t.Errorf("%d limits, of which %d are inherited", len(again.buckets), len(third.buckets))
	}
	if n := allowed(third, key2, 5); n != 2 {
		t.Errorf("%d of what was left of a burst", n)
	}
}

func TestRevoked(t *testing.T) {
	cert := &x509.Certificate{Raw: []byte("der"), SerialNumber: big.NewInt(0xabcd)}
	for text, want := range map[string]bool{
		"serial:abcd": true, "serial:0abcd": true, "serial:000abcd": true, "serial:00ABCD": true, "serial:abce": false,
		fmt.Sprintf("sha256:%x", sha256.Sum256([]byte("der"))): true, fmt.Sprintf("sha256:%x", sha256.Sum256(nil)): false,
	} {
		if got := parse(t, "rules: []\nrevoked: [\""+text+"\"]\n").Revoked(cert); got != want {
			t.Errorf("%s: %v", text, got)
		}
	}
}

func TestErrors(t *testing.T) {
	for name, tt := range map[string][2]string{
		"no clients":   {"rules: [{keys: [a]}]", `acl:1:9: a rule needs clients, as ["spiffe://example/proxy/*"]`},
		"no keys":      {"rules: [{clients: [\"spiffe://a/b\"]}]", `acl:1:9: a rule needs keys: names or ids, or ["*"]`},
		"star":         {"rules: [{clients: [\"*\"], keys: [a]}]", `acl:1:19: "*" is not a client; write the URI of its certificate, as spiffe://example/proxy/1, or with a star at the end`},
		"star in host": {"rules: [{clients: [\"spiffe://example*\"], keys: [a]}]", `acl:1:19: "spiffe://example*" means other hosts, too, as spiffe://example.evil; write spiffe://example/* for all of this one`},
		"star in port": {"rules: [{clients: [\"spiffe://example:8*\"], keys: [a]}]", `acl:1:19: "spiffe://example:8*" means other hosts, too, as spiffe://example:8.evil; write spiffe://example:8/* for all of this one`},
		"scheme":       {"rules: [{clients: [\"spiffe://a/b\"], keys: [a], schemes: [rsa]}]", `acl:1:57: "rsa" is not a signature scheme; use a name of TLS 1.3, as rsa_pss_rsae_sha256`},
		"no schemes":   {"rules:\n- clients: [\"spiffe://a/b\"]\n  keys: [a]\n  schemes: []\n", `acl:4:12: an empty list allows nothing; name the schemes, or remove the key to allow all`},
		"empty lists":  {"rules: [{clients: [], keys: []}]", `acl:1:9: a rule needs clients, as ["spiffe://example/proxy/*"]`},
		"burst":        {"rules: [{clients: [\"spiffe://a/b\"], keys: [a], burst: 3}]", `acl:1:55: a burst without a rate means nothing; give a rate`},
		"unknown key":  {"rulez: []", `acl:1:1: unknown key "rulez"; did you mean "rules"?`},
		"revoked":      {"revoked: [abc]", `acl:1:10: "abc" names no certificate; write serial:HEX or sha256:HEX of its DER`},
		"empty":        {"", `acl: no rules; write rules: [] to deny everything`},
		"contradictio": {"rules: [{clients: [\"spiffe://a/b\"], keys: [a], tls13_only: true, tls12_premaster: true}]", `acl:1:83: a rule that is tls13_only cannot allow it`},
	} {
		if _, err := Parse("acl", []byte(tt[0])); err == nil || err.Error() != tt[1] {
			t.Errorf("%s:\ngot  %v\nwant %s", name, err, tt[1])
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("rules:\n- clients: [\"spiffe://a/b*\"]\n  keys: [\"*\"]\n  rate: 1\nrevoked: [\"serial:01\"]\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := Parse("f", text)
		if err != nil {
			return
		}
		r.Grant("spiffe://a/b", key1, "n").Check(&signing.Request{Scheme: signing.Ed25519}, time.Now())
		r.Revoked(&x509.Certificate{SerialNumber: big.NewInt(1)})
	})
}

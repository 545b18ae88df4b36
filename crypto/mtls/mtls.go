// SPDX-License-Identifier: Apache-2.0

// Package mtls is how the two ends of the cluster know each other: mutual TLS,
// version 1.3 and no other, each side by the one URI in its certificate. Files
// are read again while the program runs; a handshake uses what is there then.
//
// An Identity owns no goroutine: whoever has it calls Reload at times. Any
// goroutine may call its methods.
package mtls

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/credentials"

	"pno/crypto/acl"
)

// Files are where a side's certificate, its key, and the authorities that it
// believes in are, as PEM.
type Files struct {
	Cert string `yaml:"cert"`
	Key  string `yaml:"key"`
	CA   string `yaml:"ca"`
}

// Validate is called by the configuration loader.
func (f *Files) Validate() error {
	if f.Cert == "" || f.Key == "" || f.CA == "" {
		return errors.New("tls needs cert, key and ca: three files of PEM")
	}
	return nil
}

type state struct {
	cert  tls.Certificate
	roots *x509.CertPool
	stamp []stamp
}

// stamp tells a changed file from one that is the same.
type stamp struct {
	size int64
	time time.Time
}

// Identity is one side.
type Identity struct {
	files Files
	now   atomic.Pointer[state]
}

// Load reads the files.
func Load(files Files) (*Identity, error) {
	id := &Identity{files: files}
	_, err := id.Reload()
	if err != nil {
		return nil, err
	}
	return id, nil
}

// Reload reads the files again if one has changed. After an error what was read
// before stays in force.
func (id *Identity) Reload() (changed bool, err error) {
	stamps, err := stat(id.files)
	if err != nil {
		return false, err
	}
	if s := id.now.Load(); s != nil && slices.Equal(s.stamp, stamps) {
		return false, nil
	}
	cert, err := tls.LoadX509KeyPair(id.files.Cert, id.files.Key)
	if err != nil {
		return false, fmt.Errorf("load certificate: %w", err)
	}
	if _, err := uriOf(cert.Leaf); err != nil {
		return false, fmt.Errorf("load certificate %s: %w", id.files.Cert, err)
	}
	pem, err := os.ReadFile(id.files.CA)
	if err != nil {
		return false, fmt.Errorf("load authorities: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return false, fmt.Errorf("load authorities: no certificate in %s", id.files.CA)
	}
	id.now.Store(&state{cert: cert, roots: roots, stamp: stamps})
	return true, nil
}

func stat(f Files) ([]stamp, error) {
	var out []stamp
	for _, path := range []string{f.Cert, f.Key, f.CA} {
		info, err := os.Stat(path)
		if err != nil {
			return nil, fmt.Errorf("load certificate: %w", err)
		}
		out = append(out, stamp{info.Size(), info.ModTime()})
	}
	return out, nil
}

// URI is who this side is.
func (id *Identity) URI() string {
	uri, err := uriOf(id.now.Load().cert.Leaf)
	if err != nil {
		return "" // Reload has seen it
	}
	return uri
}

// Files are where it was read from.
func (id *Identity) Files() Files { return id.files }

// Expires is when this side's certificate does.
func (id *Identity) Expires() time.Time { return id.now.Load().cert.Leaf.NotAfter }

// Usable tells whether peers can believe in this side's certificate at that time.
func (id *Identity) Usable(now time.Time) error {
	switch leaf := id.now.Load().cert.Leaf; {
	case now.After(leaf.NotAfter):
		return fmt.Errorf("certificate %s expired at %s", id.files.Cert, leaf.NotAfter.Format(time.RFC3339))
	case now.Before(leaf.NotBefore):
		return fmt.Errorf("certificate %s is not good before %s; is the clock right?", id.files.Cert, leaf.NotBefore.Format(time.RFC3339))
	}
	return nil
}

var errOneURI = errors.New("a certificate of this cluster has exactly one URI (subjectAltName), as spiffe://example/proxy/1")

func uriOf(cert *x509.Certificate) (string, error) {
	if len(cert.URIs) != 1 {
		return "", errOneURI
	}
	uri := cert.URIs[0]
	// Access rules name folders of such paths (spiffe://example/proxy/*); .. would
	// be in one by its spelling and in another by its meaning.
	for _, part := range strings.Split(uri.Path, "/") {
		if part == "." || part == ".." {
			return "", fmt.Errorf("the URI %q of the certificate has %q in its path; SPIFFE forbids that, and so does this cluster", uri, part)
		}
	}
	return uri.String(), nil
}

// Check verifies a peer's chain against the authorities that are believed in
// now, and returns who the peer is.
func (id *Identity) Check(chain []*x509.Certificate, usage x509.ExtKeyUsage) (string, error) {
	s, err := id.Stand(chain, usage)
	return s.URI, err
}

// Standing is what Check has found out, and what it rests on.
type Standing struct {
	URI   string
	roots *x509.CertPool
	until time.Time // when the first certificate of the chain expires
}

// Stand is Check, whose result Holds can tell to be good still.
func (id *Identity) Stand(chain []*x509.Certificate, usage x509.ExtKeyUsage) (Standing, error) {
	if len(chain) == 0 {
		return Standing{}, errors.New("the peer sent no certificate")
	}
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	s := Standing{roots: id.now.Load().roots}
	found, err := chain[0].Verify(x509.VerifyOptions{Roots: s.roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{usage}})
	if err != nil {
		return Standing{}, err
	}
	for _, c := range found[0] {
		if s.until.IsZero() || c.NotAfter.Before(s.until) {
			s.until = c.NotAfter
		}
	}
	s.URI, err = uriOf(chain[0])
	return s, err
}

// Holds tells whether Stand would say the same now: the authorities are those that
// were asked, and nothing has expired.
func (id *Identity) Holds(s Standing, now time.Time) bool {
	return s.roots != nil && s.roots == id.now.Load().roots && !now.After(s.until)
}

// Server is for a worker's listener. Check of each client is made in the
// handshake; failed is told about handshakes that are refused.
func (id *Identity) Server(failed func(addr net.Addr, err error)) credentials.TransportCredentials {
	return &serverCreds{TransportCredentials: credentials.NewTLS(id.serverConfig()), id: id, failed: failed}
}

func (id *Identity) serverConfig() *tls.Config {
	s := id.now.Load()
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{s.cert},
		// The chain is verified below, where an authority that came or went
		// since counts.
		ClientAuth:             tls.RequireAnyClientCert,
		SessionTicketsDisabled: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			_, err := id.Check(cs.PeerCertificates, x509.ExtKeyUsageClientAuth)
			return err
		},
	}
}

type serverCreds struct {
	credentials.TransportCredentials
	id     *Identity
	failed func(net.Addr, error)
}

func (c *serverCreds) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := credentials.NewTLS(c.id.serverConfig()).ServerHandshake(raw)
	if err != nil {
		c.failed(raw.RemoteAddr(), err)
	}
	return conn, info, err
}

func (c *serverCreds) Clone() credentials.TransportCredentials {
	return &serverCreds{c.TransportCredentials.Clone(), c.id, c.failed}
}

// Client is for connections to workers, which must be whom pattern means.
func (id *Identity) Client(pattern string) credentials.TransportCredentials {
	return &clientCreds{TransportCredentials: credentials.NewTLS(id.clientConfig(pattern)), id: id, pattern: pattern}
}

func (id *Identity) clientConfig(pattern string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{id.now.Load().cert},
		// A worker is known by its URI, not by an address that it has today:
		// its chain and its name are verified right here.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			uri, err := id.Check(cs.PeerCertificates, x509.ExtKeyUsageServerAuth)
			if err != nil {
				return err
			}
			if !acl.Match(pattern, uri) {
				return fmt.Errorf("the worker is %s, want %s", uri, pattern)
			}
			return nil
		},
	}
}

type clientCreds struct {
	credentials.TransportCredentials
	id      *Identity
	pattern string
}

func (c *clientCreds) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return credentials.NewTLS(c.id.clientConfig(c.pattern)).ClientHandshake(ctx, authority, raw)
}

func (c *clientCreds) Clone() credentials.TransportCredentials {
	return &clientCreds{c.TransportCredentials.Clone(), c.id, c.pattern}
}

// SPDX-License-Identifier: Apache-2.0

// Package cryptotest brings up clusters of workers inside a test: an authority,
// a store of keys, workers whose engines can be told to misbehave, and links to
// them that can be cut.
//
// What it starts ends with the test. Faults may be set by any goroutine.
package cryptotest

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"pno/crypto/acl"
	"pno/crypto/audit"
	"pno/crypto/engine"
	"pno/crypto/engine/enginetest"
	"pno/crypto/engine/gosoft"
	"pno/crypto/engine/libcrypto"
	"pno/crypto/keystore"
	"pno/crypto/mtls"
	"pno/crypto/mtls/mtlstest"
	"pno/crypto/secmem"
	"pno/crypto/server"
)

// ProxyURI is who the tests' client is, WorkerURI what its workers match.
const (
	ProxyURI  = "spiffe://pno.test/proxy/1"
	WorkerURI = "spiffe://pno.test/cryptod/*"
)

// Cluster is some workers with the same keys.
type Cluster struct {
	CA      *mtlstest.Authority
	Store   *keystore.Store
	Dir     string // of the store
	KEK     string // its specification
	Workers []*Worker
}

// Worker is one of them.
type Worker struct {
	Server *server.Server
	Fault  *Fault
	Link   *Link  // what clients connect to
	Addr   string // past the link
	Audit  string
}

// AllowAll lets the tests' client use every key for everything but decryption.
const AllowAll = "rules:\n- {clients: [\"" + ProxyURI + "\"], keys: [\"*\"]}\n"

// NewStore makes a store with test keys of these types.
func NewStore(t testing.TB, kinds ...string) (store *keystore.Store, dir, kek string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kek")
	if err := keystore.NewKEKFile(path); err != nil {
		t.Fatal(err)
	}
	kek = "file:" + path
	opened, err := keystore.OpenKEK(kek)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := opened.Close(); err != nil {
			t.Error(err)
		}
	})
	dir = t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil { // the umask may let a group write
		t.Fatal(err)
	}
	store, err = keystore.Open(dir, opened)
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range kinds {
		Import(t, store, kind, keystore.Options{Name: kind})
	}
	return store, dir, kek
}

// Import adds a test key to a store.
func Import(t testing.TB, store *keystore.Store, kind string, opts keystore.Options) *keystore.Entry {
	t.Helper()
	buf, err := secmem.Move(append([]byte(nil), enginetest.Key(t, kind).PKCS8...))
	if err != nil {
		t.Fatal(err)
	}
	defer buf.Free()
	e, err := store.Import(keystore.Secret{Buffer: buf}, opts)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// New starts n workers.
func New(t testing.TB, n int, rules string, kinds ...string) *Cluster {
	t.Helper()
	store, dir, kek := NewStore(t, kinds...)
	c := &Cluster{CA: mtlstest.NewAuthority(t), Store: store, Dir: dir, KEK: kek}
	for i := range n {
		c.Workers = append(c.Workers, c.Start(t, string(rune('a'+i)), rules, ""))
	}
	return c
}

// Start starts one more worker, at an address or anywhere.
func (c *Cluster) Start(t testing.TB, name, rules, addr string) *Worker {
	t.Helper()
	return c.StartWith(t, name, rules, addr, Software)
}

// StartWith is Start with other engines.
func (c *Cluster) StartWith(t testing.TB, name, rules, addr string, engines ...server.Opener) *Worker {
	t.Helper()
	return c.StartTuned(t, name, rules, addr, func(*server.Config) {}, engines...)
}

// StartTuned is StartWith with other settings.
func (c *Cluster) StartTuned(t testing.TB, name, rules, addr string, tune func(*server.Config), engines ...server.Opener) *Worker {
	t.Helper()
	parsed, err := acl.Parse("acl", []byte(rules))
	if err != nil {
		t.Fatal(err)
	}
	w := &Worker{Fault: new(Fault), Audit: filepath.Join(t.TempDir(), "audit")}
	log, err := audit.Open(audit.Config{Path: w.Audit, Interval: 5 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	var openers []server.Opener
	for _, open := range engines {
		openers = append(openers, func(sink engine.Sink) (engine.Engine, error) { return open(w.Fault.Sink(sink)) })
	}
	cfg := server.Config{Name: name, Identity: Identity(t, c.CA, "spiffe://pno.test/cryptod/"+name), Rules: parsed,
		Audit: log, Log: slog.New(slog.DiscardHandler), CheckEvery: 50 * time.Millisecond,
		Engines: openers}
	tune(&cfg)
	if w.Server, err = server.New(cfg); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Server.LoadKeys(c.Store); err != nil {
		t.Fatal(err)
	}
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	lis, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	w.Addr = lis.Addr().String()
	w.Link = NewLink(t, w.Addr)
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go w.Server.Watch(ctx)
	go func() { served <- w.Server.Serve(lis) }()
	t.Cleanup(func() {
		cancel()
		w.Fault.Clear()
		if err := w.Server.Close(); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
		if err := log.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// Software is the best engine of this build.
func Software(sink engine.Sink) (engine.Engine, error) {
	if libcrypto.Available {
		return libcrypto.New(libcrypto.Config{}, sink)
	}
	return gosoft.New(gosoft.Config{}, sink), nil
}

// Identity issues and loads a certificate.
func Identity(t testing.TB, ca *mtlstest.Authority, uri string) *mtls.Identity {
	t.Helper()
	id, err := mtls.Load(ca.Issue(t, uri, time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// Addrs is where clients connect.
func (c *Cluster) Addrs() []string {
	var out []string
	for _, w := range c.Workers {
		out = append(out, w.Link.Addr())
	}
	return out
}

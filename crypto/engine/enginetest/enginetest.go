// SPDX-License-Identifier: Apache-2.0

// Package enginetest is the suite that every engine passes, and keys to test
// with. Conformance runs it; each engine's own tests call that.
//
// Keys are made once a process; any goroutine may use them.
package enginetest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"embed"
	"encoding/pem"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pno/crypto/engine"
	"pno/crypto/signing"
)

// TestKey is a key pair to test with.
type TestKey struct {
	engine.Material
	Signer crypto.Signer
}

var (
	keysMu sync.Mutex
	keys   = map[string]*TestKey{}
)

// Key returns the process's test key of a type: RSA-2048, RSA-3072, RSA-4096,
// P-256, P-384, P-521 or Ed25519.
func Key(t testing.TB, kind string) *TestKey {
	t.Helper()
	keysMu.Lock()
	defer keysMu.Unlock()
	if k := keys[kind]; k != nil {
		return k
	}
	k, err := prepared(kind)
	if err != nil {
		t.Fatal(err)
	}
	keys[kind] = k
	return k
}

// long are the keys that would take seconds to make. They are for tests, and as
// secret as all that is in a public place.
//
//go:embed testdata/*.pem
var long embed.FS

// prepared is a key that is there already, or else a new one.
func prepared(kind string) (*TestKey, error) {
	text, err := long.ReadFile("testdata/" + strings.ToLower(kind) + ".pem")
	if err != nil {
		return NewKey(kind)
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("the prepared key %s is no PEM", kind)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	return newTestKey(key.(*rsa.PrivateKey))
}

// NewKey makes a key of a type that Key knows.
func NewKey(kind string) (*TestKey, error) {
	var s crypto.Signer
	var err error
	switch kind {
	case "P-256":
		s, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "P-384":
		s, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "P-521":
		s, err = ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	case "Ed25519":
		_, s, err = ed25519.GenerateKey(rand.Reader)
	default:
		var bits int
		if _, err := fmt.Sscanf(kind, "RSA-%d", &bits); err != nil {
			return nil, fmt.Errorf("no test key of type %q", kind)
		}
		s, err = rsa.GenerateKey(rand.Reader, bits)
	}
	if err != nil {
		return nil, err
	}
	return newTestKey(s)
}

func newTestKey(s crypto.Signer) (*TestKey, error) {
	der, err := x509.MarshalPKCS8PrivateKey(s)
	if err != nil {
		return nil, err
	}
	id, err := signing.IDOfPublic(s.Public())
	if err != nil {
		return nil, err
	}
	return &TestKey{engine.Material{ID: id, Public: s.Public(), PKCS8: der}, s}, nil
}

// Kinds are the types of key that an engine computes with.
var Kinds = []string{"RSA-2048", "P-256", "P-384", "P-521", "Ed25519"}

// Opener starts the engine under test.
type Opener func(t *testing.T, sink engine.Sink) engine.Engine

// Collector is a sink that waits.
type Collector struct{ done chan *engine.Op }

// NewCollector makes a sink for up to n operations.
func NewCollector(n int) *Collector { return &Collector{make(chan *engine.Op, n)} }

// Sink is the engine.Sink.
func (c *Collector) Sink(ops []*engine.Op) {
	for _, op := range ops {
		c.done <- op
	}
}

// Wait returns n operations.
func (c *Collector) Wait(t testing.TB, n int) []*engine.Op {
	t.Helper()
	var out []*engine.Op
	timeout := time.After(30 * time.Second)
	for range n {
		select {
		case op := <-c.done:
			out = append(out, op)
		case <-timeout:
			t.Fatalf("%d of %d operations came back", len(out), n)
		}
	}
	return out
}

// Conformance holds an engine to the seam.
func Conformance(t *testing.T, open Opener) {
	RemoteConformance(t, open)
	t.Run("bad keys", func(t *testing.T) { testBadKeys(t, open) })
}

// RemoteConformance is that for an engine which does not hold the keys itself.
func RemoteConformance(t *testing.T, open Opener) {
	t.Run("signatures", func(t *testing.T) { testSignatures(t, open) })
	t.Run("premaster", func(t *testing.T) { testPremaster(t, open) })
	t.Run("bounded", func(t *testing.T) { testBounded(t, open) })
	t.Run("room", func(t *testing.T) { testRoom(t, open) })
	t.Run("deadline", func(t *testing.T) { testDeadline(t, open) })
}

func input(s signing.Scheme, i int) []byte {
	if s == signing.Ed25519 {
		return bytes.Repeat([]byte{byte(i)}, 130)
	}
	h := s.Hash().New()
	fmt.Fprint(h, i)
	return h.Sum(nil)
}

// Every scheme with every type of key that it fits, several of each at once.
func testSignatures(t *testing.T, open Opener) {
	c := NewCollector(1024)
	e := open(t, c.Sink)
	defer closeEngine(t, e)
	var ops []*engine.Op
	for _, kind := range Kinds {
		tk := Key(t, kind)
		k, err := e.Load(tk.Material)
		if err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		defer k.Close()
		for _, s := range signing.Schemes() {
			for i := range 6 {
				if s.Fits(tk.Public) {
					ops = append(ops, &engine.Op{Key: k, Owner: tk, Task: signing.Task{Scheme: s, Data: input(s, i)}})
				}
			}
		}
	}
	if n := e.Submit(ops); n != len(ops) {
		t.Fatalf("%d of %d taken", n, len(ops))
	}
	for _, op := range c.Wait(t, len(ops)) {
		tk := op.Owner.(*TestKey)
		if op.Err != nil {
			t.Errorf("%v: %v", op.Task.Scheme, op.Err)
		} else if err := signing.Verify(tk.Public, &op.Task, op.Out); err != nil {
			t.Errorf("%s, %v: %v", signing.KeyType(tk.Public), op.Task.Scheme, err)
		}
	}
}

// A good ciphertext gives its secret; every bad one gives 48 bytes that are the
// same each time, and another for another ciphertext.
func testPremaster(t *testing.T, open Opener) {
	c := NewCollector(16)
	e := open(t, c.Sink)
	defer closeEngine(t, e)
	tk := Key(t, "RSA-2048")
	k, err := e.Load(tk.Material)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	decrypt := func(ct []byte) []byte {
		e.Submit([]*engine.Op{{Key: k, Task: signing.Task{Decrypt: true, Version: 0x0303, Data: ct}}})
		op := c.Wait(t, 1)[0]
		if op.Err != nil || len(op.Out) != signing.PremasterLen {
			t.Fatalf("%v, %d bytes", op.Err, len(op.Out))
		}
		return op.Out
	}
	encrypt := func(plain []byte) []byte {
		ct, err := rsa.EncryptPKCS1v15(rand.Reader, tk.Public.(*rsa.PublicKey), plain) //nolint:staticcheck // it is what TLS-RSA does
		if err != nil {
			t.Fatal(err)
		}
		return ct
	}
	secret := append([]byte{3, 3}, bytes.Repeat([]byte{0xab}, 46)...)
	if got := decrypt(encrypt(secret)); !bytes.Equal(got, secret) {
		t.Errorf("got %x", got)
	}
	seen := map[[32]byte]string{sha256.Sum256(secret): "good"}
	for name, ct := range map[string][]byte{
		"wrong version": encrypt(append([]byte{3, 1}, secret[2:]...)),
		"too short":     encrypt(secret[:47]),
		"too long":      encrypt(append(secret, 1)),
		"noise":         bytes.Repeat([]byte{0x11}, 256),
		"no number":     bytes.Repeat([]byte{0xff}, 256),
	} {
		first, second := decrypt(ct), decrypt(ct)
		if !bytes.Equal(first, second) {
			t.Errorf("%s: two answers", name)
		}
		if other, twice := seen[sha256.Sum256(first)]; twice {
			t.Errorf("%s: the answer of %s", name, other)
		}
		seen[sha256.Sum256(first)] = name
	}
}

// Submit takes what fits and no more, and takes again later.
func testBounded(t *testing.T, open Opener) {
	c := NewCollector(1 << 16)
	e := open(t, c.Sink)
	defer closeEngine(t, e)
	k, err := e.Load(Key(t, "P-256").Material)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	most := e.Info().Capacity
	if most < 1 {
		t.Fatalf("capacity %d", most)
	}
	if w := e.Info().Window; w < 1 {
		t.Errorf("a window of %d: everybody would wait behind all that one client asks for", w)
	}
	ops := make([]*engine.Op, 4*most+100)
	for i := range ops {
		ops[i] = &engine.Op{Key: k, Task: signing.Task{Scheme: signing.ECDSAP256SHA256, Data: make([]byte, 32)}}
	}
	n := e.Submit(ops)
	if n < 1 || n > most {
		t.Errorf("%d taken of %d, capacity %d", n, len(ops), most)
	}
	c.Wait(t, n)
	for deadline := time.Now().Add(20 * time.Second); e.Submit(ops[n:n+1]) == 0; {
		if time.Now().After(deadline) {
			t.Fatal("nothing is taken after everything came back")
		}
		time.Sleep(time.Millisecond)
	}
	c.Wait(t, 1)
}

// A full engine has room in the sink for as many as came back.
func testRoom(t *testing.T, open Opener) {
	const rounds = 3
	var e engine.Engine
	ready := make(chan struct{}) // e is set
	c := NewCollector(1 << 16)
	var again atomic.Int64
	var refused atomic.Int64
	e = open(t, func(done []*engine.Op) {
		<-ready
		var next []*engine.Op
		for _, op := range done {
			if again.Add(-1) >= 0 {
				next = append(next, &engine.Op{Key: op.Key, Task: op.Task})
			}
		}
		refused.Add(int64(len(next) - e.Submit(next)))
		c.Sink(done)
	})
	defer closeEngine(t, e)
	k, err := e.Load(Key(t, "P-256").Material)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	ops := make([]*engine.Op, e.Info().Capacity)
	for i := range ops {
		ops[i] = &engine.Op{Key: k, Task: signing.Task{Scheme: signing.ECDSAP256SHA256, Data: make([]byte, 32)}}
	}
	again.Store(int64(rounds * len(ops)))
	n := e.Submit(ops)
	close(ready)
	c.Wait(t, (1+rounds)*n-int(refused.Load()))
	if n != len(ops) || refused.Load() > 0 {
		t.Errorf("%d of %d taken; in the sink, %d refused", n, len(ops), refused.Load())
	}
}

func testDeadline(t *testing.T, open Opener) {
	c := NewCollector(1)
	e := open(t, c.Sink)
	defer closeEngine(t, e)
	k, err := e.Load(Key(t, "P-256").Material)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	e.Submit([]*engine.Op{{Key: k, Deadline: time.Now().Add(-time.Second),
		Task: signing.Task{Scheme: signing.ECDSAP256SHA256, Data: make([]byte, 32)}}})
	op := c.Wait(t, 1)[0]
	if signing.StatusOf(op.Err) != signing.DeadlineExceeded || op.Out != nil {
		t.Errorf("got %v", op.Err)
	}
}

func testBadKeys(t *testing.T, open Opener) {
	e := open(t, func([]*engine.Op) {})
	defer closeEngine(t, e)
	for name, der := range map[string][]byte{"empty": nil, "garbage": []byte("not a key"), "cut": Key(t, "RSA-2048").PKCS8[:200]} {
		k, err := e.Load(engine.Material{PKCS8: der, Public: Key(t, "RSA-2048").Public})
		if err == nil {
			k.Close()
			t.Errorf("%s: loaded", name)
		}
	}
	// The private half of another key.
	for _, kind := range Kinds {
		other, err := NewKey(kind)
		if err != nil {
			t.Fatal(err)
		}
		if k, err := e.Load(engine.Material{PKCS8: other.PKCS8, Public: Key(t, kind).Public}); err == nil {
			k.Close()
			t.Errorf("%s: loaded as the other half of another key", kind)
		}
	}
}

func closeEngine(t *testing.T, e engine.Engine) {
	t.Helper()
	if err := e.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
}

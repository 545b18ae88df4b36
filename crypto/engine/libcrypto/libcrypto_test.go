// SPDX-License-Identifier: Apache-2.0

package libcrypto

import (
	"errors"
	"strings"
	"testing"

	"pno/crypto/engine"
	"pno/crypto/engine/enginetest"
	"pno/crypto/signing"
)

func TestConformance(t *testing.T) {
	if !Available {
		t.Skip("built without cgo")
	}
	enginetest.Conformance(t, func(t *testing.T, sink engine.Sink) engine.Engine {
		e, err := New(Config{Threads: 2, Queue: 256}, sink)
		if err != nil {
			t.Fatal(err)
		}
		return e
	})
}

func TestProviders(t *testing.T) {
	_, err := New(Config{Provider: "no-such-provider"}, nil)
	if !Available {
		if !errors.Is(err, engine.ErrUnsupported) {
			t.Errorf("got %v", err)
		}
		t.Skip("built without cgo")
	}
	// The name, and why: which file there is not.
	if err == nil || !strings.Contains(err.Error(), `provider "no-such-provider"`) || !strings.Contains(err.Error(), "no-such-provider.so: cannot open shared object file") {
		t.Errorf("got %v", err)
	}
	// The base provider has no arithmetic: with it preferred, the default one computes.
	e, err := New(Config{Provider: "base", PropQuery: "?provider=base"}, func([]*engine.Op) {})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(e.Info().Detail, "provider base") {
		t.Errorf("%+v", e.Info())
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
}

// A provider by its name computes, and one that lacks the algorithm is not passed
// over in silence when the query wants no other.
func TestProviderByName(t *testing.T) {
	if !Available {
		t.Skip("built without cgo")
	}
	key := enginetest.Key(t, "RSA-2048")
	for _, c := range []struct{ provider, query, want string }{
		{"default", "provider=default", ""},
		{"legacy", "?provider=legacy", ""},
		{"legacy", "provider=legacy", "supported"},
	} {
		sink := enginetest.NewCollector(1)
		e, err := New(Config{Threads: 1, Provider: c.provider, PropQuery: c.query}, sink.Sink)
		if err != nil {
			t.Fatal(err)
		}
		if d := e.Info().Detail; !strings.Contains(d, "provider "+c.provider) {
			t.Errorf("%q says nothing of provider %s", d, c.provider)
		}
		k, err := e.Load(key.Material)
		switch {
		case c.want != "":
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s, %s: %v", c.provider, c.query, err)
			}
		case err != nil:
			t.Errorf("%s, %s: %v", c.provider, c.query, err)
		default:
			task := signing.Task{Scheme: signing.RSAPSSSHA256, Data: make([]byte, 32)}
			e.Submit([]*engine.Op{{Key: k, Task: task}})
			op := sink.Wait(t, 1)[0]
			if op.Err != nil || signing.Verify(key.Public, &task, op.Out) != nil {
				t.Errorf("%s, %s: %v", c.provider, c.query, op.Err)
			}
			k.Close()
		}
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}
}

func BenchmarkSign(b *testing.B) {
	enginetest.Benchmark(b, func(sink engine.Sink) (engine.Engine, error) { return New(Config{Threads: 1}, sink) })
}

// Engines and keys come and go, while other threads compute and end.
func TestLifetimes(t *testing.T) {
	if !Available {
		t.Skip("built without cgo")
	}
	kinds := []string{"RSA-2048", "P-256", "Ed25519"}
	for range 8 {
		c := enginetest.NewCollector(64)
		e, err := New(Config{Threads: 4, Queue: 64}, c.Sink)
		if err != nil {
			t.Fatal(err)
		}
		for _, kind := range kinds {
			k, err := e.Load(enginetest.Key(t, kind).Material)
			if err != nil {
				t.Fatal(err)
			}
			scheme := map[string]signing.Scheme{"RSA-2048": signing.RSAPSSSHA256, "P-256": signing.ECDSAP256SHA256, "Ed25519": signing.Ed25519}[kind]
			var ops []*engine.Op
			for range 16 {
				ops = append(ops, &engine.Op{Key: k, Task: signing.Task{Scheme: scheme, Data: make([]byte, 32)}})
			}
			e.Submit(ops)
			for _, op := range c.Wait(t, len(ops)) {
				if op.Err != nil {
					t.Fatal(op.Err)
				}
			}
			k.Close()
		}
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

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
	if err == nil || !strings.Contains(err.Error(), "no-such-provider") {
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

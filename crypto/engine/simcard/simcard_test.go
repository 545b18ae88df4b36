// SPDX-License-Identifier: Apache-2.0

package simcard

import (
	"strings"
	"testing"
	"time"

	"pno/crypto/engine"
	"pno/crypto/engine/enginetest"
	"pno/crypto/engine/gosoft"
	"pno/crypto/signing"
)

func behind(sink engine.Sink) (engine.Engine, error) { return gosoft.New(gosoft.Config{}, sink), nil }

func TestConformance(t *testing.T) {
	enginetest.Conformance(t, func(t *testing.T, sink engine.Sink) engine.Engine {
		e, err := New(Config{Ring: 256}, behind, sink)
		if err != nil {
			t.Fatal(err)
		}
		return e
	})
}

// The card keeps to its rate and latency, and says what it is.
func TestModel(t *testing.T) {
	c := enginetest.NewCollector(1024)
	e, err := New(Config{Ring: 512, Latency: 5 * time.Millisecond, Rate: 10_000}, behind, c.Sink)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if i := e.Info(); !i.Simulated || !strings.Contains(i.Detail, "simulated") || i.Capacity != 512 {
		t.Errorf("%+v", i)
	}
	k, err := e.Load(enginetest.Key(t, "P-256").Material)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	batch := func(n int) time.Duration {
		ops := make([]*engine.Op, n)
		for i := range ops {
			ops[i] = &engine.Op{Key: k, Task: signing.Task{Scheme: signing.ECDSAP256SHA256, Data: make([]byte, 32)}}
		}
		start := time.Now()
		if got := e.Submit(ops); got != n {
			t.Fatalf("%d of %d taken", got, n)
		}
		c.Wait(t, n)
		return time.Since(start)
	}
	batch(1) // computes, and is remembered
	if d := batch(1); d < 5*time.Millisecond {
		t.Errorf("one operation in %v", d)
	}
	if d := batch(500); d < 54*time.Millisecond {
		t.Errorf("500 operations in %v: faster than the card", d)
	}
}

// What keeps the card busy is a few milliseconds of work, not its whole ring.
func TestWindow(t *testing.T) {
	for _, tt := range []struct {
		cfg  Config
		want int
	}{
		{Config{}, 184},
		{Config{Rate: 100}, 16},
		{Config{Rate: 1e12}, 512},
		{Config{Ring: 8}, 8},
		{Config{Latency: 10 * time.Millisecond}, 512},
		{Config{Latency: 10 * time.Millisecond, Ring: 2048}, 580},
	} {
		e, err := New(tt.cfg, func(sink engine.Sink) (engine.Engine, error) {
			return gosoft.New(gosoft.Config{Threads: 1, Queue: 4096}, sink), nil
		}, func([]*engine.Op) {})
		if err != nil {
			t.Fatal(err)
		}
		if i := e.Info(); i.Window != tt.want {
			t.Errorf("%+v: a window of %d of %d, want %d", tt.cfg, i.Window, i.Capacity, tt.want)
		}
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}
}

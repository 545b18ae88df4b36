// SPDX-License-Identifier: Apache-2.0

package client_test

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"

	"pno/crypto/client"
	"pno/crypto/cryptotest"
	"pno/crypto/engine/enginetest"
	"pno/crypto/keystore"
	"pno/crypto/server"
	"pno/crypto/signing"
)

// connected waits until so many workers are.
func connected(t *testing.T, cl *client.Cluster, n int) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		got := 0
		for _, w := range cl.Stats().Workers {
			if w.Connected {
				got++
			}
		}
		if got == n {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d workers are connected, want %d", got, n)
		}
	}
}

// known has the cluster's client learn the public half of a key.
func known(t *testing.T, cl *client.Cluster, kind string) {
	t.Helper()
	if _, err := cl.Public(t.Context(), enginetest.Key(t, kind).ID); err != nil {
		t.Fatal(err)
	}
}

// A worker that drains is not one that operations can wait for: they wait for the
// one that comes back.
func TestDrainingIsNotConnected(t *testing.T) {
	c := cryptotest.New(t, 1, cryptotest.AllowAll, "P-256")
	drains := c.Workers[0]
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	back := lis.Addr().String()
	lis.Close() // nobody there yet
	cl := connect(t, c, func(cfg *client.Config) {
		cfg.Workers, cfg.Stall = []string{drains.Addr, back}, time.Minute
	})
	connected(t, cl, 1)
	known(t, cl, "P-256")
	drains.Fault.Stall()
	first := make(chan error, 1)
	go func() {
		_, err := cl.Do(soon(), opFor(t, "P-256", signing.ECDSAP256SHA256))
		first <- err
	}()
	eventually(t, "begun", func() bool { return drains.Fault.Held() > 0 })
	drained := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		drained <- drains.Server.Drain(ctx)
	}()
	connected(t, cl, 0)
	second := make(chan error, 1)
	go func() {
		_, err := cl.Do(soon(), opFor(t, "P-256", signing.ECDSAP256SHA256))
		second <- err
	}()
	select {
	case err := <-second:
		t.Fatalf("did not wait for a worker: %v", err)
	case <-time.After(700 * time.Millisecond): // longer than client.DefaultWait
	}
	c.Start(t, "back", cryptotest.AllowAll, back)
	if err := <-second; err != nil {
		t.Errorf("while one worker drains and the other is started: %v", err)
	}
	drains.Fault.Clear()
	if err := <-first; err != nil {
		t.Errorf("the operation that the draining worker had: %v", err)
	}
	if err := <-drained; err != nil {
		t.Error(err)
	}
}

// eventually waits for something that happens by itself.
func eventually(t *testing.T, what string, there func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !there(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(what)
		}
	}
}

// Much more than the budget allows is under way when a worker begins to sign
// wrongly, and when one's connections break: all of it is done elsewhere.
func TestManyFailOver(t *testing.T) {
	const many = 600
	c := cryptotest.New(t, 2, cryptotest.AllowAll, "P-256")
	bad, good := c.Workers[0], c.Workers[1]
	for scheme, spoil := range map[string]func(){
		"wrong":  func() { bad.Fault.Wrong(true); bad.Fault.Resume() },
		"broken": bad.Link.Break,
	} {
		t.Run(scheme, func(t *testing.T) {
			answers := manual.NewBuilderWithScheme(scheme)
			answers.InitialState(addresses(bad))
			resolver.Register(answers)
			cl := connect(t, c, func(cfg *client.Config) {
				cfg.Workers, cfg.Stall, cfg.HedgeAfter = []string{scheme + ":///workers"}, time.Minute, time.Minute
			})
			connected(t, cl, 1)
			known(t, cl, "P-256")
			bad.Fault.Stall()
			var failed atomic.Int64
			var all sync.WaitGroup
			for range many {
				all.Go(func() {
					if _, err := cl.Do(time.Now().Add(time.Minute), opFor(t, "P-256", signing.ECDSAP256SHA256)); err != nil && failed.Add(1) == 1 {
						t.Error(err)
					}
				})
			}
			eventually(t, "all with the worker", func() bool { return cl.Stats().Workers[0].Outstanding == many })
			answers.UpdateState(addresses(bad, good))
			connected(t, cl, 2)
			spoil()
			all.Wait()
			t.Logf("%+v", cl.Stats())
			if n := failed.Load(); n > 0 {
				t.Errorf("%d of %d failed", n, many)
			}
			if cl.Stats().Retries < many/2 {
				t.Error("they did not have to be repeated")
			}
			bad.Fault.Clear()
		})
	}
}

func addresses(workers ...*cryptotest.Worker) (s resolver.State) {
	for _, w := range workers {
		s.Endpoints = append(s.Endpoints, resolver.Endpoint{Addresses: []resolver.Address{{Addr: w.Link.Addr()}}})
	}
	return s
}

// After a start every operation wants the public half of its key, which a worker
// tells only so often: it is asked for once, and a worker that does not answer is
// not waited for.
func TestPublicAskedOnce(t *testing.T) {
	const many = 6000 // the server's burst is 4096
	c := cryptotest.New(t, 2, cryptotest.AllowAll, "P-256")
	id := enginetest.Key(t, "P-256").ID
	cl := connect(t, c, func(cfg *client.Config) { cfg.Stall = 20 * time.Second })
	connected(t, cl, 2)
	c.Workers[0].Link.Cut()
	begun := time.Now()
	var all sync.WaitGroup
	for range many {
		all.Go(func() {
			if _, err := cl.Public(t.Context(), id); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if took := time.Since(begun); took > 10*time.Second {
		t.Errorf("took %v: the worker behind the partition was waited for", took)
	}
	c.Workers[0].Link.Mend()
}

// A worker that had no time for an operation is not the last that is asked, while
// there is time.
func TestWorkerWithoutTime(t *testing.T) {
	c := cryptotest.New(t, 0, cryptotest.AllowAll)
	cryptotest.Import(t, c.Store, "P-256", keystore.Options{Name: "P-256"})
	hasty := func(cfg *server.Config) { cfg.MaxTimeout = time.Nanosecond }
	c.Workers = append(c.Workers, c.StartTuned(t, "hasty", cryptotest.AllowAll, "", hasty, cryptotest.Software), c.Start(t, "good", cryptotest.AllowAll, ""))
	cl := connect(t, c, nil)
	connected(t, cl, 2)
	for range 50 {
		if _, err := cl.Do(soon(), opFor(t, "P-256", signing.ECDSAP256SHA256)); err != nil {
			t.Fatal(err)
		}
	}
	if cl.Stats().Retries == 0 {
		t.Error("the worker without time was never asked")
	}
}

// Several tiers, of which the first did not come to its good worker in its half of
// the time, and of the others one is gone and one has no such key: the first is
// asked once more.
func TestTiersOnceMore(t *testing.T) {
	const half = 2 * time.Second
	c := cryptotest.New(t, 1, cryptotest.AllowAll, "P-256")
	first := connect(t, c, func(cfg *client.Config) { cfg.Stall = time.Minute })
	gone := connect(t, c, func(cfg *client.Config) { cfg.Workers, cfg.Wait = []string{"127.0.0.1:1"}, time.Millisecond })
	none := connect(t, cryptotest.New(t, 1, cryptotest.AllowAll), nil) // without the key
	cl, err := client.New(2*half, first, gone, none)
	if err != nil {
		t.Fatal(err)
	}
	connected(t, none, 1)
	connected(t, first, 1)
	known(t, first, "P-256")
	w := c.Workers[0]
	w.Fault.Stall()
	done := make(chan error, 1)
	go func() {
		_, err := cl.Do(time.Time{}, opFor(t, "P-256", signing.ECDSAP256SHA256))
		done <- err
	}()
	eventually(t, "the first half is over", func() bool { return first.Stats().Failures > 0 })
	w.Fault.Clear()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if used := cl.Used()["cluster"]; used != 1 {
		t.Errorf("%d operations done", used)
	}
}

// A worker that nobody asks anything has nothing to wait for when it drains, though
// clients are connected. On a busy machine it may take a while: one of some counts.
func TestIdleDrain(t *testing.T) {
	var took time.Duration
	for range 5 {
		c := cryptotest.New(t, 1, cryptotest.AllowAll, "P-256")
		cl := connect(t, c, nil)
		connected(t, cl, 1)
		if _, err := cl.Do(soon(), opFor(t, "P-256", signing.ECDSAP256SHA256)); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		begun := time.Now()
		err := c.Workers[0].Server.Drain(ctx)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		if took = time.Since(begun); took < time.Second {
			return
		}
	}
	t.Errorf("the last of five took %v", took)
}

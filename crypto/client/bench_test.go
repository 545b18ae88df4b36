// SPDX-License-Identifier: Apache-2.0

package client_test

import (
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pno/crypto/acl"
	"pno/crypto/client"
	"pno/crypto/cryptotest"
	"pno/crypto/engine"
	"pno/crypto/engine/enginetest"
	"pno/crypto/engine/simcard"
	"pno/crypto/server"
	"pno/crypto/signing"
)

// nothing is an engine that answers at once, to measure the way to it.
type nothing struct{ sink engine.Sink }

type noKey struct{}

func (noKey) Close() {}

func (nothing) Info() engine.Info {
	return engine.Info{Kind: "none", Capacity: 1 << 16, Verifies: true}
}
func (nothing) Load(engine.Material) (engine.Key, error) { return noKey{}, nil }
func (nothing) Close() error                             { return nil }

var signature = make([]byte, 256)

func (n nothing) Submit(ops []*engine.Op) int {
	for _, op := range ops {
		op.Out = signature
	}
	n.sink(ops)
	return len(ops)
}

// BenchmarkRPC is the cost of the way to a worker and back, for both ends
// together: CPU a operation is what counts.
func BenchmarkRPC(b *testing.B) {
	store, _, _ := cryptotest.NewStore(b, "RSA-2048")
	c := cryptotest.New(b, 0, cryptotest.AllowAll)
	rules, err := acl.Parse("acl", []byte(cryptotest.AllowAll))
	if err != nil {
		b.Fatal(err)
	}
	srv, err := server.New(server.Config{Identity: cryptotest.Identity(b, c.CA, "spiffe://pno.test/cryptod/x"), Rules: rules, Log: slog.New(slog.DiscardHandler),
		Engines: []server.Opener{func(s engine.Sink) (engine.Engine, error) { return nothing{s}, nil }}})
	if err != nil {
		b.Fatal(err)
	}
	if _, err := srv.LoadKeys(store); err != nil {
		b.Fatal(err)
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	go srv.Serve(lis)
	defer srv.Close()
	cl := connect(b, c, func(cfg *client.Config) {
		cfg.Workers, cfg.Verify = []string{lis.Addr().String()}, client.VerifyOff
	})
	for _, inflight := range []int{1, 32, 256} {
		b.Run(fmt.Sprint(inflight), func(b *testing.B) {
			benchmark(b, cl, inflight, func() *client.Op { return opFor(b, "RSA-2048", signing.RSAPSSSHA256) })
		})
	}
}

// BenchmarkCluster is that with real signatures.
func BenchmarkCluster(b *testing.B) {
	c := cryptotest.New(b, 1, cryptotest.AllowAll, "RSA-2048", "P-256")
	cl := connect(b, c, nil)
	for kind, scheme := range map[string]signing.Scheme{"RSA-2048": signing.RSAPSSSHA256, "P-256": signing.ECDSAP256SHA256} {
		pub := enginetest.Key(b, kind).Public
		for _, inflight := range []int{1, 32} {
			b.Run(fmt.Sprintf("%s/%d", kind, inflight), func(b *testing.B) {
				benchmark(b, cl, inflight, func() *client.Op { op := opFor(b, kind, scheme); op.Public = pub; return op })
			})
		}
	}
}

// BenchmarkSimulatedCards is the way to 1, 2 and 4 simulated cards of 40,000
// operations a second each: what the path carries, not what hardware does.
func BenchmarkSimulatedCards(b *testing.B) {
	for _, cards := range []int{1, 2, 4} {
		b.Run(fmt.Sprint(cards), func(b *testing.B) {
			c := cryptotest.New(b, 0, cryptotest.AllowAll, "RSA-2048")
			card := func(sink engine.Sink) (engine.Engine, error) {
				return simcard.New(simcard.Config{}, cryptotest.Software, sink)
			}
			w := c.StartWith(b, "cards", cryptotest.AllowAll, "", slices.Repeat([]server.Opener{card}, cards)...)
			cl := connect(b, c, func(cfg *client.Config) {
				cfg.Workers, cfg.Verify = []string{w.Addr}, client.VerifyOff
			})
			benchmark(b, cl, 256, func() *client.Op { return opFor(b, "RSA-2048", signing.RSAPSSSHA256) })
		})
	}
}

func benchmark(b *testing.B, cl *client.Cluster, inflight int, op func() *client.Op) {
	if _, err := cl.Do(soon(), op()); err != nil {
		b.Fatal(err)
	}
	var wg sync.WaitGroup
	work := make(chan struct{}, inflight)
	var before, after unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &before)
	b.ResetTimer()
	for range inflight {
		wg.Add(1)
		go func() {
			defer wg.Done()
			o := op()
			for range work {
				if _, err := cl.Do(time.Now().Add(10*time.Second), o); err != nil {
					b.Error(err)
				}
			}
		}()
	}
	for range b.N {
		work <- struct{}{}
	}
	close(work)
	wg.Wait()
	b.StopTimer()
	_ = unix.Getrusage(unix.RUSAGE_SELF, &after)
	used := unix.TimevalToNsec(after.Utime) + unix.TimevalToNsec(after.Stime) - unix.TimevalToNsec(before.Utime) - unix.TimevalToNsec(before.Stime)
	b.ReportMetric(float64(used)/1000/float64(b.N), "cpu-µs/op")
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "ops/s")
}

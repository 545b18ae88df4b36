// SPDX-License-Identifier: Apache-2.0

package enginetest

import (
	"testing"

	"pno/crypto/engine"
	"pno/crypto/signing"
)

// Benchmark measures signatures with 32 in flight.
func Benchmark(b *testing.B, open func(sink engine.Sink) (engine.Engine, error)) {
	for _, c := range []struct {
		kind   string
		scheme signing.Scheme
	}{{"RSA-2048", signing.RSAPSSSHA256}, {"P-256", signing.ECDSAP256SHA256}, {"Ed25519", signing.Ed25519}} {
		b.Run(c.kind, func(b *testing.B) {
			const inflight = 32
			back := make(chan *engine.Op, inflight)
			e, err := open(func(done []*engine.Op) {
				for _, op := range done {
					back <- op
				}
			})
			if err != nil {
				b.Skip(err)
			}
			k, err := e.Load(Key(b, c.kind).Material)
			if err != nil {
				b.Fatal(err)
			}
			one := make([]*engine.Op, 1)
			submit := func(op *engine.Op) {
				*op = engine.Op{Key: k, Task: signing.Task{Scheme: c.scheme, Data: input(c.scheme, 1)}}
				one[0] = op
				for e.Submit(one) == 0 {
					b.Fatal("full")
				}
			}
			b.ResetTimer()
			out := 0
			for range b.N {
				if out < inflight {
					out++
					submit(new(engine.Op))
				} else {
					submit(<-back)
				}
			}
			for range out {
				if op := <-back; op.Err != nil {
					b.Fatal(op.Err)
				}
			}
			b.StopTimer()
			k.Close()
			if err := e.Close(); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "ops/s")
		})
	}
}

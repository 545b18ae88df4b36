// SPDX-License-Identifier: Apache-2.0

package gosoft

import (
	"testing"

	"pno/crypto/engine"
	"pno/crypto/engine/enginetest"
)

func TestConformance(t *testing.T) {
	enginetest.Conformance(t, func(_ *testing.T, sink engine.Sink) engine.Engine {
		return New(Config{Threads: 2, Queue: 256}, sink)
	})
}

func BenchmarkSign(b *testing.B) {
	enginetest.Benchmark(b, func(sink engine.Sink) (engine.Engine, error) { return New(Config{Threads: 1}, sink), nil })
}

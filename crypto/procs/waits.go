// SPDX-License-Identifier: Apache-2.0

package procs

import "runtime/metrics"

// waits are how long runnable goroutines waited to run. The runtime counts one of
// several.
type waits struct {
	sample []metrics.Sample
	long   int    // the first bucket of waits that are too long
	longs  uint64 // until the last look
	all    uint64
}

// A wait is too long from a millisecond on: several times what an operation with
// little else beside it has. There are too many if a sixteenth is, and more than one.
const (
	longWait  = 1e-3 // seconds
	longShare = 16
	longLeast = 2
)

func (w *waits) init() {
	w.sample = []metrics.Sample{{Name: "/sched/latencies:seconds"}}
	metrics.Read(w.sample)
	if w.sample[0].Value.Kind() != metrics.KindFloat64Histogram {
		w.sample = nil // a later Go may not have it: what is used decides alone
		return
	}
	h := w.sample[0].Value.Float64Histogram()
	for w.long < len(h.Counts) && h.Buckets[w.long] < longWait {
		w.long++
	}
	w.late()
}

// late tells whether there were too many since the last look.
func (w *waits) late() bool {
	if w.sample == nil {
		return false
	}
	metrics.Read(w.sample)
	var longs, all uint64
	for i, n := range w.sample[0].Value.Float64Histogram().Counts {
		all += n
		if i >= w.long {
			longs += n
		}
	}
	tooLong, ran := longs-w.longs, all-w.all
	w.longs, w.all = longs, all
	return tooLong >= longLeast && tooLong*longShare >= ran
}

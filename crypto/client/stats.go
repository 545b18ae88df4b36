// SPDX-License-Identifier: Apache-2.0

package client

import (
	"sync/atomic"
	"time"
)

type stats struct {
	operations, failures, retries, hedges, hedgeWins, broken, wrong, breaks, overBudget atomic.Uint64
}

// Stats is what a cluster's client counted.
type Stats struct {
	Operations uint64 // asked for
	Failures   uint64 // that no worker did in time
	Retries    uint64 // asked of another worker after a bad answer
	Hedges     uint64 // asked of another worker because the answer was late
	HedgeWins  uint64 // of those, answered first by the other
	Broken     uint64 // lost with a stream
	Wrong      uint64 // signatures that did not verify
	Breaks     uint64 // workers kept out after failures
	OverBudget uint64 // repetitions that the budget did not allow
	Workers    []WorkerStats
}

// WorkerStats is one worker.
type WorkerStats struct {
	Address     string
	Connected   bool
	KeptOut     bool
	Outstanding int64
}

// Stats returns the counters.
func (c *Cluster) Stats() Stats {
	s := Stats{Operations: c.stats.operations.Load(), Failures: c.stats.failures.Load(), Retries: c.stats.retries.Load(),
		Hedges: c.stats.hedges.Load(), HedgeWins: c.stats.hedgeWins.Load(), Broken: c.stats.broken.Load(),
		Wrong: c.stats.wrong.Load(), Breaks: c.stats.breaks.Load(), OverBudget: c.stats.overBudget.Load()}
	now := time.Now()
	for _, w := range *c.workers.Load() {
		s.Workers = append(s.Workers, WorkerStats{w.addr, w.up(), !w.breaker.ready(now), w.outstanding.Load()})
	}
	return s
}

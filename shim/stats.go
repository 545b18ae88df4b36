// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"sync/atomic"

	"pno/offload"
)

// counters are a process's statistics page, or, before there is a session, a
// place in private memory.
type counters [offload.StatsCount]atomic.Uint64

func (c *counters) add(which stat, n uint64) { c[which].Add(n) }
func (c *counters) inc(which stat)           { c[which].Add(1) }

// moveTo hands everything counted so far over.
func (c *counters) moveTo(to *counters) {
	for i := range c {
		if n := c[i].Swap(0); n != 0 {
			to[i].Add(n)
		}
	}
}

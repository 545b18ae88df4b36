// SPDX-License-Identifier: Apache-2.0

package shard

// A host that has been woken answers what waits one by one, and the shard, which
// polls meanwhile, sees each answer as soon as it is there. To send each at once
// would cost a kick of the link for each; and the peers whose answers come first
// ask again first, so that what was one batch falls into several, each of which
// wakes the host anew. The last answer waits for nothing.

const (
	gatherPause = 4_000    // a host that says nothing for so long is not in the middle of it
	gatherMost  = 40_000   // the longest time that the first answer waits
	gatherBytes = 32 << 10 // what has so much to it is a batch
)

// gatherer decides whether what the stack has to send goes out, or waits for
// what a host is about to add to it.
type gatherer struct {
	heard uint64 // bytes that hosts had said at the last look
	since int64  // when the first of what waits was said, 0 if nothing waits
	from  uint64 // heard before that
	last  int64  // when something was said last
}

// quiet reports whether there is nothing to decide.
func (g *gatherer) quiet(heard uint64) bool { return g.since == 0 && heard == g.heard }

// waits takes a look. speaking: a host that was heard may be about to go on.
func (g *gatherer) waits(now int64, heard uint64, speaking bool) bool {
	if heard != g.heard {
		if g.since == 0 {
			g.since, g.from = now, g.heard
		}
		g.heard, g.last = heard, now
	}
	if speaking && now-g.last < gatherPause && now-g.since < gatherMost && heard-g.from < gatherBytes {
		return true
	}
	g.since = 0
	return false
}

// gathers reports whether what is to be sent waits for more.
func (s *Shard) gathers() bool {
	heard := s.Table.Heard()
	return !s.gather.quiet(heard) && s.gather.waits(s.now(), heard, s.Table.Speaking())
}

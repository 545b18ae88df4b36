// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"fmt"
	"time"
)

// Faults is what the wire does to the frames of one direction. The zero value
// is a perfect, infinitely fast wire. Chances are from 0 to 1, for each frame
// by itself.
type Faults struct {
	Loss      float64
	Duplicate float64
	Reorder   float64

	// Delay is added to every frame, and up to Jitter more, without changing
	// their order.
	Delay, Jitter time.Duration
	// ReorderHold is how long a reordered frame is held back beyond its delay,
	// while those behind it pass; 1 ms if 0.
	ReorderHold time.Duration
	// Bandwidth in bits a second, headers included; 0 is infinite.
	Bandwidth uint64
}

const defaultReorderHold = time.Millisecond

func (f Faults) any() bool {
	return f.Loss > 0 || f.Duplicate > 0 || f.timed()
}

// timed tells whether frames arrive later than they are sent.
func (f Faults) timed() bool {
	return f.Reorder > 0 || f.Delay > 0 || f.Jitter > 0 || f.Bandwidth > 0
}

func (f Faults) check() error {
	for _, c := range []struct {
		name  string
		value float64
	}{{"loss", f.Loss}, {"duplication", f.Duplicate}, {"reordering", f.Reorder}} {
		if !(c.value >= 0 && c.value <= 1) {
			return fmt.Errorf("%s %v, want 0 to 1", c.name, c.value)
		}
	}
	if f.Delay < 0 || f.Jitter < 0 || f.ReorderHold < 0 {
		return fmt.Errorf("negative delay %v, jitter %v or hold %v", f.Delay, f.Jitter, f.ReorderHold)
	}
	return nil
}

// impair applies the faults to the committed frames: lost ones return to the
// pool, duplicates are added, and each gets the moment of its arrival. Every
// frame draws the same number of random values whatever becomes of it, so that
// the fate of the n-th frame depends on the seed alone.
func (q *Queue) impair() {
	f := &q.way.faults
	sent := q.committed
	kept := sent[:0]
	q.twins = q.twins[:0]
	for _, fr := range sent {
		lost, twice := q.rng.Float64() < f.Loss, q.rng.Float64() < f.Duplicate
		reorder, jitter := q.rng.Float64() < f.Reorder, q.rng.Float64()
		if lost {
			q.dev.txDropped.Add(1)
			q.free = append(q.free, fr)
			continue
		}
		if f.timed() {
			q.way.schedule(fr, reorder, jitter)
		}
		kept = append(kept, fr)
		if !twice {
			continue
		}
		if dup := q.get(false); dup != nil {
			dup.n = copy(dup.buf, fr.buf[:fr.n])
			if f.timed() {
				q.way.schedule(dup, false, jitter)
			}
			q.twins = append(q.twins, dup)
		}
	}
	q.committed = append(kept, q.twins...)
}

// schedule sets the moment of a frame's arrival.
func (w *direction) schedule(fr *frame, reorder bool, jitter float64) {
	w.scheduleAt(monotonic(), fr, reorder, jitter)
}

func (w *direction) scheduleAt(now int64, fr *frame, reorder bool, jitter float64) {
	f := &w.faults
	w.mu.Lock()
	defer w.mu.Unlock()
	start := max(now, w.freeAt)
	if f.Bandwidth > 0 {
		start += int64(uint64(fr.n) * 8 * uint64(time.Second) / f.Bandwidth)
		w.freeAt = start
	}
	due := start + int64(f.Delay) + int64(jitter*float64(f.Jitter))
	if reorder {
		hold := f.ReorderHold
		if hold == 0 {
			hold = defaultReorderHold
		}
		due += int64(hold)
	} else {
		due = max(due, w.lastDue)
		w.lastDue = due
	}
	w.seq++
	fr.due, fr.seq = due, w.seq
}

// SPDX-License-Identifier: Apache-2.0

package session

import "pno/offload"

// coolAfter is how long a queue pair of a busy shard is polled without a
// record before the host is asked to ring the doorbell instead.
const coolAfter = 1e6

// spacePoll is how often the loop looks whether a host has given back ring
// space that sockets wait for: giving back rings no doorbell.
const spacePoll = 1e6

// blindPoll is how often a transport without doorbell is polled.
const blindPoll = 50e3

// Turn runs one turn of the loop: sockets with news from the network, then
// records from the hosts. now is the monotonic time in nanoseconds. It
// reports whether anything was done.
func (t *Table) Turn(now int64) bool {
	t.now = now
	if len(t.corks) > 0 {
		t.uncork()
	}
	busy := t.serveReady()
	for i := 0; i < len(t.hot); i++ {
		if q := t.hot[i]; !q.s.dead {
			if t.pump(q) {
				busy = true
			}
		}
	}
	if len(t.untold) > 0 {
		t.tellAll()
	}
	return busy
}

func (t *Table) serveReady() (busy bool) {
	for s := t.ready.take(); s != nil; {
		next := s.next
		s.done()
		t.service(s)
		busy, s = true, next
	}
	if len(t.again) > 0 {
		list := t.again
		t.again, t.spareAgain = t.spareAgain[:0], nil
		for _, s := range list {
			s.later, s.cork = false, false
			t.service(s)
		}
		clear(list)
		t.spareAgain = list[:0]
		busy = true
	}
	return busy
}

// later has s looked at in the next turn.
func (t *Table) later(s *socket) {
	if !s.later {
		s.later = true
		t.again = append(t.again, s)
	}
}

// pump takes in and executes what the host sent on q.
func (t *Table) pump(q *queue) (busy bool) {
	q.s.t.Poll()
	if err := q.qp.Pump(); err != nil {
		t.fail(q.s, err)
		return true
	}
	if len(q.overflow) > 0 || len(q.waiting) > 0 {
		t.serveWaiting(q)
	}
	if q.held != nil {
		r := q.held
		q.held, t.owed = nil, false
		if !t.execute(q, r.Record, r.payload) {
			q.held = r
			return false
		}
		busy = true
	}
	for n := 0; n < recordsATurn && len(q.overflow) == 0 && !q.s.dead; n++ {
		rec, payload, ok, err := q.qp.Next()
		if err != nil {
			t.fail(q.s, err)
			return true
		}
		if !ok {
			break
		}
		busy, t.owed, t.speaker = true, false, q
		t.heard += uint64(offload.RecordSpace(len(payload)))
		q.asked = max(0, q.asked-1)
		q.h2d++
		t.stats.recordsH2D++
		q.s.stats.recordsH2D++
		if !t.execute(q, rec, payload) {
			q.held = &record{rec, append([]byte(nil), payload...)}
			break
		}
	}
	if busy && !q.s.dead {
		q.lastWork = t.now
		t.soil(q)
	}
	return busy
}

// Ahead posts what sockets have got by now, before the rest of what there is to
// do in this turn, and raises the interrupts for it.
func (t *Table) Ahead(now int64) {
	t.now = now
	if t.serveReady() {
		t.Flush(now)
	}
}

// Flush posts what this turn produced, and raises the interrupts that are due
// by count or by time.
func (t *Table) Flush(now int64) {
	t.now = now
	for len(t.dirty) > 0 {
		list := t.dirty
		t.dirty = nil
		for _, q := range list {
			q.dirty = false
			if q.s.dead {
				continue
			}
			t.flush(q)
		}
		if t.dirty == nil {
			t.dirty = list[:0]
			break
		}
	}
	t.interrupts()
}

func (t *Table) flush(q *queue) {
	if q.telling {
		t.ackMoved(q)
	}
	if q.qp.Armed() {
		q.qp.DisarmDoorbell()
	}
	if err := q.qp.Flush(); err != nil {
		t.fail(q.s, err)
		return
	}
	// Publishing comes before looking whether the host sleeps: the read does
	// not pass the writes.
	if err := q.qp.Pump(); err != nil {
		t.fail(q.s, err)
	}
}

// dueIn is when an interrupt that was put off must go.
func (q *queue) dueIn(t *Table) int64 {
	return max(q.lastIntr+int64(t.Moderation.MaxDelay)-t.now, 1)
}

// interrupts wakes the hosts that sleep with something to see.
func (t *Table) interrupts() {
	for _, q := range t.hot {
		q.telling = false
		if q.s.dead || !q.qp.InterruptDue() {
			q.due = false
			if q.qp.Asleep() {
				q.asked = 0 // it has seen all there is
			}
			continue
		}
		m := &t.Moderation
		if q.events < m.MaxEvents && t.now-q.lastIntr < int64(m.MaxDelay) {
			if !q.due {
				q.due = true
				q.moderated++
				t.stats.moderated++
				q.s.stats.moderated++
			}
			continue
		}
		q.due, q.events, q.lastIntr = false, 0, t.now
		q.qp.Interrupt()
		q.interrupts++
		t.stats.interrupts++
		q.s.stats.interrupts++
	}
}

// Cool hands queue pairs without work over to their doorbells. With all set
// (the loop wants to sleep) every queue pair is asked to; otherwise only
// those that have been silent for long. It reports whether any record turned
// up meanwhile, and after how many nanoseconds the loop must look again even
// if nothing wakes it (-1: never).
func (t *Table) Cool(now int64, all bool) (busy bool, again int64) {
	t.now, again = now, -1
	sooner := func(d int64) {
		if again < 0 || d < again {
			again = d
		}
	}
	list := t.hot
	t.hot, t.spare = t.spare[:0], nil
	for _, q := range list {
		work, after := t.cool(q, all)
		busy = busy || work
		if after >= 0 {
			sooner(after)
		}
		if !work && after < 0 || q.s.dead {
			q.hot = false
			q.s.hot--
			continue
		}
		t.hot = append(t.hot, q)
	}
	clear(list)
	t.spare = list[:0]
	if len(t.corks) > 0 {
		sooner(max(t.corks[0].uncork-now, 1))
	}
	if d := t.tellIn(); d > 0 {
		sooner(d)
	}
	if !t.ready.empty() || len(t.again) > 0 {
		busy = true
	}
	return busy, again
}

// cool tries to hand q over to its doorbell. It reports whether there is work
// on it, and otherwise when to look at it again: -1 once the doorbell is
// armed and nothing is open.
func (t *Table) cool(q *queue, all bool) (work bool, after int64) {
	switch {
	case q.s.dead:
		return false, -1
	case q.dirty:
		return true, -1
	case q.held != nil || len(q.overflow) > 0:
		return false, spacePoll
	case !all && t.now-q.lastWork < coolAfter:
		return false, coolAfter
	case q.answers(t.now):
		return false, q.answerIn(t)
	}
	if err := t.arm(q); err != nil {
		t.fail(q.s, err)
		return false, -1
	}
	if q.due {
		return false, q.dueIn(t)
	}
	if d := q.s.t.Poll(); d > 0 {
		return false, d
	}
	if q.s.t.DoorbellFD() < 0 {
		return !q.qp.Quiet(), blindPoll
	}
	if !q.qp.Quiet() {
		return true, -1
	}
	if len(q.waiting) > 0 {
		return false, spacePoll
	}
	return false, -1
}

// arm asks for the doorbell of q and then reads the host's control line: what
// came before the host can have seen the request is found now.
func (t *Table) arm(q *queue) error {
	if !q.qp.Armed() {
		q.qp.ArmDoorbell()
		if err := q.qp.Flush(); err != nil {
			return err
		}
	} else if q.qp.Quiet() {
		// The control line read after arming has come in since. Another read
		// would only be under way again, and the loop could never sleep on a
		// transport that takes its time.
		return nil
	}
	return q.qp.Pump()
}

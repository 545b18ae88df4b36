// SPDX-License-Identifier: Apache-2.0

package session

import (
	"pno/offload"
)

// queue is one queue pair in service.
//
// Records for the host that must not get lost wait in overflow when the ring
// is full, and as long as any does, no record of the host is executed: the
// host has to read before it may ask for more. Sockets that want to send data
// wait in waiting.
type queue struct {
	s       *Session
	qp      *offload.DevQP
	channel int

	hot       bool
	dirty     bool
	lastWork  int64 // when a record last came or went
	overflow  []record
	waiting   []*socket
	spaceWait int64 // since when waiting is not empty
	held      *record
	asked     int       // pieces of data that the host may be about to answer
	telling   bool      // a Held was emitted in this turn
	told      int       // of how many sockets in it
	company   int       // the most lately, one less with each turn
	toldAt    int64     // when the last one was
	cameAt    int64     // when something last came for a socket on hold
	unacked   []*socket // of which Moves have been taken, and the host not told
	passing   *passing  // what held waits for, if it is other rings

	// Interrupt moderation.
	events   int   // records published since the last interrupt
	lastIntr int64 // when it was raised
	due      bool  // one is due and put off

	h2d, d2h, interrupts, moderated uint64
}

// record is one that waits, payload included.
type record struct {
	offload.Record
	payload []byte
}

// space is the largest payload of a record that can be emitted now, -1 if
// none.
func (q *queue) space() int {
	if len(q.overflow) > 0 {
		return -1
	}
	return q.qp.Space()
}

// emit builds a record with n payload bytes, or returns nil if it has to wait
// for ring space.
func (t *Table) emit(q *queue, op offload.Op, sock, seq, ack uint32, n int) []byte {
	if len(q.overflow) > 0 {
		return nil
	}
	b := q.qp.Emit(op, 0, sock, seq, ack, n)
	if b != nil {
		t.emitted(q)
	}
	return b
}

func (t *Table) emitted(q *queue) {
	q.d2h++
	t.stats.recordsD2H++
	q.s.stats.recordsD2H++
	q.events++
	q.lastWork, t.owed = t.now, true
	t.soil(q)
}

// post emits a record that must arrive; it waits in overflow if need be.
func (t *Table) post(q *queue, op offload.Op, sock, seq, ack uint32, payload []byte) {
	if q == nil || q.s.dead {
		return
	}
	if b := t.emit(q, op, sock, seq, ack, len(payload)); b != nil {
		copy(b, payload)
		return
	}
	q.overflow = append(q.overflow, record{
		offload.Record{Op: op, Len: uint16(len(payload)), Sock: sock, Seq: seq, Ack: ack},
		append([]byte(nil), payload...),
	})
	t.heat(q)
}

// soil notes that q has something to flush.
func (t *Table) soil(q *queue) {
	if !q.dirty {
		q.dirty = true
		t.dirty = append(t.dirty, q)
	}
	t.heat(q)
}

// heat makes the loop poll q.
func (t *Table) heat(q *queue) {
	if !q.hot && !q.s.dead {
		q.hot = true
		q.lastWork = t.now
		q.s.hot++
		t.hot = append(t.hot, q)
	}
}

// wait puts s into the line for q's ring space.
func (t *Table) wait(q *queue, s *socket) {
	if s.waiting {
		return
	}
	s.waiting = true
	if len(q.waiting) == 0 {
		q.spaceWait = t.now
	}
	q.waiting = append(q.waiting, s)
	t.stats.ringFull++
	t.heat(q)
}

// enough is the ring space that is worth serving waiting sockets for.
func (q *queue) enough() int { return min(8<<10, int(q.s.l.D2HSize)/8) }

// serveWaiting goes on with what waited for ring space.
func (t *Table) serveWaiting(q *queue) {
	for len(q.overflow) > 0 {
		r := &q.overflow[0]
		b := q.qp.Emit(r.Op, r.Flags, r.Sock, r.Seq, r.Ack, len(r.payload))
		if b == nil {
			return
		}
		copy(b, r.payload)
		t.emitted(q)
		q.overflow = q.overflow[1:]
	}
	q.overflow = nil
	if len(q.waiting) == 0 || q.qp.Space() < q.enough() {
		return
	}
	list := q.waiting
	q.waiting = nil
	for _, s := range list {
		s.waiting = false
		t.later(s)
	}
}

// SPDX-License-Identifier: Apache-2.0

package session

import "pno/offload"

// Only records of one ring are sure to stay in order, and three cases need more.
//
// A listener is subscribed to on several channels, and closed on one. What the
// application accepted on the others before it closed the listener may still
// lie in their rings. A Close that came first would reset connections that the
// application has.
//
// A connection is claimed by another session than that which has it. What that
// one did before, the program may know of: its bytes go first, and what it shut
// down is shut.
//
// An address is bound anew. The socket that had it may have been closed on any
// channel, and the application knows that it has closed it.
//
// So the record waits until each ring on which something may be has been read
// up to where it was when the record came.

// passingLimit bounds the wait: a host that fills a ring for ever, or has it
// stand still, holds up nobody but itself, and who shares a socket with it.
const passingLimit = 50e6

// passing is the wait of one record.
type passing struct {
	until int64 // by Table.now
	rings []ring
}

type ring struct {
	q    *queue
	mark offload.Mark
}

// read tells whether the ring has been read that far. The last record may be
// held.
func (r *ring) read() bool { return r.q.qp.Passed(&r.mark) }

// add has the wait include what q's host has published.
func (p *passing) add(q *queue) { p.rings = append(p.rings, ring{q, q.qp.Mark()}) }

// passed tells whether q's record need not wait (any more). While it must, q is
// asked again. done tells whether a ring need not be waited for (any more).
func (t *Table) passed(q *queue, begin func(*passing), done func(*ring) bool) bool {
	p := q.passing
	if p == nil {
		p = &passing{until: t.now + passingLimit}
		begin(p)
		q.passing = p
	}
	for i := range p.rings {
		r := &p.rings[i]
		if r.q.s.dead || done(r) {
			continue
		}
		if t.now < p.until {
			t.heat(r.q)
			t.heat(q)
			return false
		}
	}
	q.passing = nil
	return true
}

// acceptsPassed tells whether the host's Accepted records for a listener that
// it closes on q have been seen.
func (t *Table) acceptsPassed(q *queue, h *hold) bool {
	return t.passed(q, func(p *passing) {
		for _, sub := range h.sock.l.subs {
			if sub.h == h && sub.q != q && len(sub.unaccepted) > 0 {
				p.add(sub.q)
			}
		}
	}, (*ring).read)
}

// closesPassed tells whether what the host closed on other channels before it
// binds an address on q has been seen.
func (t *Table) closesPassed(q *queue) bool {
	return t.passed(q, func(p *passing) {
		for _, o := range q.s.queues {
			// Two that bind at once would wait for each other.
			if o != nil && o != q && (o.held == nil || o.held.Op != offload.OpBind) {
				p.add(o)
			}
		}
	}, func(r *ring) bool { return r.read() && r.q.held == nil })
}

// formerPassed tells whether a connection that h's session claims on q, and
// another has, is done with there. A ring that itself stands still is not
// waited for: two sessions may claim from each other.
func (t *Table) formerPassed(q *queue, h *hold) bool {
	o := h.sock.home
	if q.passing == nil && (o == nil || o.s == q.s) {
		return true
	}
	return t.passed(q, func(p *passing) { p.add(o) }, func(r *ring) bool {
		return r.read() || r.q.held != nil || len(r.q.overflow) > 0
	})
}

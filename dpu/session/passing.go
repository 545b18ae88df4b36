// SPDX-License-Identifier: Apache-2.0

package session

import "pno/offload"

// A listener is subscribed to on several channels, and closed on one. What the
// application accepted on the others before it closed the listener may still
// lie in their rings, and only records of one ring are sure to stay in order.
// A Close that came first would reset connections that the application has. So
// it waits until each ring on which an Accepted may be has been read up to
// where it was when the Close came.

// passingLimit bounds the wait: a host that fills a ring for ever, or has it
// stand still, holds up nobody but itself.
const passingLimit = 50e6

// passing is the wait of one Close.
type passing struct {
	until int64 // by Table.now
	rings []ring
}

type ring struct {
	q    *queue
	mark offload.Mark
}

// acceptsPassed tells whether the host's Accepted records for a listener that
// it closes on q have been seen. While they have not, q is asked again.
func (t *Table) acceptsPassed(q *queue, h *hold) bool {
	p := q.passing
	if p == nil {
		if p = t.awaitAccepts(q, h); p == nil {
			return true
		}
		q.passing = p
	}
	for i := range p.rings {
		r := &p.rings[i]
		if r.q.s.dead || r.q.qp.Passed(&r.mark) {
			continue
		}
		if t.now < p.until {
			t.heat(r.q)
			return false
		}
	}
	q.passing = nil
	return true
}

// awaitAccepts returns nil if no other ring can carry an Accepted.
func (t *Table) awaitAccepts(q *queue, h *hold) (p *passing) {
	for _, sub := range h.sock.l.subs {
		if sub.h != h || sub.q == q || len(sub.unaccepted) == 0 {
			continue
		}
		if p == nil {
			p = &passing{until: t.now + passingLimit}
		}
		p.rings = append(p.rings, ring{sub.q, sub.q.qp.Mark()})
	}
	return p
}

// SPDX-License-Identifier: Apache-2.0

package session

import "pno/offload"

// A connection that several sessions hold is at home with one of them, which
// gets what comes. The others are told how it stands: that there is something
// to read, so that their pollers can say so, and which halves somebody has shut
// down. Whoever then uses the connection claims it.
//
// A holder may not look at its ring for long. So it is told again only after it
// has answered, of all that has changed meanwhile at once.

const shutHalves = offload.StandingShutRead | offload.StandingShutSend

// standing is what there is to tell, and how much was received.
func (t *Table) standing(s *socket) (flags uint32, received uint64) {
	received = s.retainOff + uint64(len(s.retain))
	if s.at == nil {
		received += uint64(t.queued(s))
	}
	if received > s.consumed && !s.discard || s.eof {
		flags |= offload.StandingReadable
	}
	if s.eof {
		flags |= offload.StandingEnded
	}
	if s.shutRead {
		flags |= offload.StandingShutRead
	}
	if s.shut {
		flags |= offload.StandingShutSend
	}
	return flags, received
}

// tell informs every holder of a shared connection.
func (t *Table) tell(s *socket) {
	if len(s.holds) < 2 || s.u != nil {
		return
	}
	for _, h := range s.holds {
		t.inform(h)
	}
}

// inform tells a holder what it does not know.
func (t *Table) inform(h *hold) {
	s := h.sock
	if h.unheard || h.s == nil || h.s.dead || s.kind != connected && (s.kind != dead || s.errno == 0) {
		return
	}
	flags, received := t.standing(s)
	if h == s.at {
		flags, received = flags&shutHalves, h.toldOff
	}
	if flags == h.told && (received == h.toldOff || flags&offload.StandingReadable == 0) {
		return
	}
	q := h.listens()
	if q == nil {
		return // it claims the socket before it uses it
	}
	h.told, h.toldOff, h.unheard = flags, received, true
	t.post(q, offload.OpStanding, h.handle, uint32(received), flags, nil)
}

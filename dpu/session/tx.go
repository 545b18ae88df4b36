// SPDX-License-Identifier: Apache-2.0

package session

import (
	"gvisor.dev/gvisor/pkg/tcpip"

	"pno/offload"
)

// corkMax is how much of what more follows to is gathered before it is sent:
// beyond it, fewer segments are not worth another copy.
const corkMax = 16 << 10

// slack lets a holder that just claimed a shared socket send a full window
// while the former holder's bytes still wait.
const slack = 2

// send takes in data from the host. It reports false if the record is ahead
// of others that still lie in a former channel's ring.
func (t *Table) send(h *hold, rec offload.Record, payload []byte) (ok bool, bad string) {
	window := uint64(h.s.l.TxWindow)
	if h.moved > 0 {
		window = max(window, offload.MoveWindow) // they may not be acknowledged yet
	}
	if ok, bad := t.expect(h, rec, uint64(len(payload)), window); !ok || bad != "" {
		return ok, bad
	}
	if h.sock.u != nil {
		return true, "stream data for a datagram socket"
	}
	if h.sock.kind == connected && !h.sock.shut {
		t.stats.bytesTx += uint64(len(payload))
		h.s.stats.bytesTx += uint64(len(payload))
	}
	t.outgoing(h, payload, rec.Flags&offload.FlagMore != 0)
	return true, ""
}

// expect checks that n bytes may come from the host now.
func (t *Table) expect(h *hold, rec offload.Record, n, window uint64) (ok bool, bad string) {
	s := h.sock
	switch gap := int32(rec.Seq - uint32(h.txSeq)); {
	case gap > 0:
		return false, ""
	case gap < 0:
		return true, "send behind the stream"
	}
	if len(s.holds) > 1 {
		window *= slack
	}
	if h.txSeq+n-h.txAcked > window {
		return true, "send beyond the window"
	}
	if !t.consume(s, rec.Ack) {
		return true, "consumed more than was sent"
	}
	return true, ""
}

// outgoing gives the stack what h sends, or keeps it until the stack takes more.
func (t *Table) outgoing(h *hold, payload []byte, more bool) {
	s, n := h.sock, uint64(len(payload))
	h.txSeq += n
	if s.kind != connected || s.shut {
		// The socket died, or the host shut it down and sent all the same:
		// its records crossed ours.
		h.txAcked = h.txSeq
		return
	}
	s.txBytes += n
	if s.keep != nil {
		s.keep.over = true
	}
	s.cork = more && uint64(s.pend.len())+n < min(corkMax, uint64(h.s.l.TxWindow)/4)
	if s.cork {
		// What follows at once usually lies in the same batch: one segment
		// instead of two. The next turn sends it in any case.
		t.put(&s.pend, payload)
		t.later(s)
		return
	}
	t.write(s, payload)
	t.corkedWrite(s)
	if s.kind == connected {
		t.credit(h)
	}
}

// write gives the stack what waits, and then b; what it does not take waits.
func (t *Table) write(s *socket, b []byte) {
	for s.pend.len()+len(b) > 0 {
		t.in = source{b: &s.pend, extra: b}
		// Nobody else writes, so nobody needs the endpoint's lock meanwhile.
		w, err := s.ep.Write(&t.in, tcpip.WriteOptions{Atomic: true})
		n, waited := int(w), min(int(w), s.pend.len())
		t.take(&s.pend, waited)
		b = b[n-waited:]
		s.taken += uint64(n)
		if err != nil {
			if _, full := err.(*tcpip.ErrWouldBlock); !full {
				s.taken += uint64(s.pend.len() + len(b)) // it is lost
				t.clear(&s.pend)
				b = nil
				t.unwritable(s, err)
			}
			break
		}
		if n == 0 {
			break
		}
	}
	t.in = source{}
	t.put(&s.pend, b)
}

// unwritable handles that the stack takes nothing more.
func (t *Table) unwritable(s *socket, err tcpip.Error) {
	t.later(s) // the socket is dead, which pull reports
	if s.eof && !s.shut {
		// Reset after its FIN: there is nothing left to pull, so nobody else
		// would say so.
		t.dies(s, err)
	}
}

// push gives the stack what waits, then the FIN if one is due.
func (t *Table) push(s *socket) {
	t.write(s, nil)
	t.corkedWrite(s)
	if s.pend.len() > 0 {
		return
	}
	if s.shut && !s.shutEnd {
		s.shutEnd = true
		s.ep.Shutdown(tcpip.ShutdownWrite)
	}
	if len(s.holds) == 0 {
		t.destroy(s, false)
		return
	}
	if s.at != nil {
		t.credit(s.at)
	}
}

// ack is what a record to h reports as taken, in h's own count of bytes.
func (t *Table) ack(h *hold) uint32 {
	if n := h.txSeq - min(h.txSeq, uint64(h.sock.pend.len())); n > h.txAcked {
		h.txAcked = n
	}
	return uint32(h.txAcked)
}

// credit sends a TxAck when half of a connection's window has gathered. The
// other half is under way meanwhile, and whoever fills windows is woken twice a
// window. A datagram socket, whose frames go whole and have up to three quarters
// of the window, hears at a quarter, or when the window is full.
func (t *Table) credit(h *hold) {
	if h.s == nil || h.sock.home == nil || h.sock.at != h {
		return
	}
	if h.moved > h.txAcked && h.txLimit == 0 {
		t.creditMoved(h)
		return
	}
	window := h.txWindow()
	open := h.txSeq - h.txAcked
	free := open - min(open, uint64(h.sock.pend.len()))
	least := window / 2
	if h.sock.u != nil {
		least = window / 4
		if open >= window {
			least = 1
		}
	}
	if free >= least {
		t.acknowledge(h)
	}
}

// acknowledge sends a TxAck of all that the stack has taken.
func (t *Table) acknowledge(h *hold) {
	if h.s == nil || h.sock.home == nil || h.sock.at != h || h.sock.kind != connected && h.sock.kind != datagrams {
		return
	}
	before := h.txAcked
	if t.emit(h.sock.home, offload.OpTxAck, h.handle, 0, t.ack(h), 0) == nil {
		h.txAcked = before
		t.wait(h.sock.home, h.sock)
	}
}

// stop handles Shutdown.
func (t *Table) stop(h *hold, rec offload.Record) (ok bool, bad string) {
	s := h.sock
	switch gap := int32(rec.Seq - uint32(h.txSeq)); {
	case gap > 0:
		return false, ""
	case gap < 0:
		return true, "shutdown behind the stream"
	case rec.Flags > offload.FlagShutNoted:
		return true, "shutdown of unknown kind"
	}
	if !t.consume(s, rec.Ack) {
		return true, "consumed more than was sent"
	}
	switch s.kind {
	case listening:
		if rec.Flags == 0 || rec.Flags == 2 {
			s.ep.Shutdown(tcpip.ShutdownRead)
			if s.twin != nil {
				s.twin.Shutdown(tcpip.ShutdownRead)
			}
		}
	case connecting:
		s.ep.Shutdown(tcpip.ShutdownRead | tcpip.ShutdownWrite)
	case connected:
		before := s.shut && s.discard
		s.shutRead = s.shutRead || rec.Flags != 1
		s.discard = s.discard || rec.Flags == 0 || rec.Flags == 2
		if rec.Flags == 1 || rec.Flags == 2 {
			s.shut, s.cork = true, false
			t.push(s)
		}
		switch {
		case s.kind != connected:
		case s.discard && s.shut && !before:
			t.collect(s)
			t.later(s)
		case s.discard:
			t.pull(s)
		}
		flags, _ := t.standing(s)
		h.told |= flags & shutHalves // who did it knows
		t.tell(s)
	}
	return true, ""
}

// closeHandle handles Close.
func (t *Table) closeHandle(q *queue, h *hold, rec offload.Record) (ok bool, bad string) {
	if h.sock.l != nil && !t.acceptsPassed(q, h) {
		return false, ""
	}
	if rec.Flags&offload.FlagCloseAway == 0 || h.sock.at == h {
		switch gap := int32(rec.Seq - uint32(h.txSeq)); {
		case gap > 0:
			return false, ""
		case gap < 0:
			return true, "close behind the stream"
		}
		if !t.consume(h.sock, rec.Ack) {
			return true, "consumed more than was sent"
		}
	}
	how := closeOrderly
	if rec.Flags&offload.FlagCloseReset != 0 {
		how = closeReset
	}
	t.release(h, how)
	return true, ""
}

// SPDX-License-Identifier: Apache-2.0

package session

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"

	"pno/offload"
)

// grant is what a fork gives to the child: a hold of every socket that the
// parent had, waiting for the child's session.
type grant struct {
	parent *Session
	holds  []*hold
	next   uint32 // the parent's slots, which the child's handles repeat
	gens   []uint16
	kept   bool // the agent watches the child
	parked bool // one socket, for any who shows its descriptor: see park
}

// maxGrants bounds the forks of one session whose children have not come.
const maxGrants = 1024

// fork handles Fork.
func (t *Table) fork(q *queue, rec offload.Record, payload []byte) string {
	if len(payload) < offload.ForkReqSize {
		return "short fork request"
	}
	tok := Token(payload[:offload.ForkReqSize])
	if t.grants[tok] != nil {
		return "fork token used twice"
	}
	if q.s.grants >= maxGrants {
		t.reply(q, rec, uint32(syscall.EAGAIN), nil)
		return ""
	}
	q.s.grants++
	g := &grant{parent: q.s, next: q.s.handles.next, gens: append([]uint16(nil), q.s.handles.gens...)}
	q.s.handles.each(func(h *hold) {
		s := h.sock
		if s.from != nil {
			return // not accepted: the child has no descriptor for it
		}
		t.letGo(s)
		have := s.sent
		if s.at != h {
			have = h.have // what went to another holder the parent has not
		}
		c := &hold{sock: s, handle: h.handle, have: have, txSeq: h.txSeq, txAcked: h.txAcked,
			rxLimit: h.rxLimit, txLimit: h.txLimit, told: h.told & shutHalves, toldOff: s.sent}
		s.holds = append(s.holds, c)
		g.holds = append(g.holds, c)
	})
	t.grants[tok] = g
	// The child's copy is what was published before the reply.
	for _, o := range q.s.queues {
		if o != nil && o != q && o.dirty {
			t.flush(o)
		}
	}
	t.reply(q, rec, 0, nil)
	return ""
}

// Adopt gives a fork's grant to the child's session, and tells whether this
// shard knew the token.
func (t *Table) Adopt(id uint64, tok Token) (known bool, err error) {
	g := t.grants[tok]
	if g == nil || g.parked {
		return false, nil
	}
	s := t.sessions[id]
	if s == nil {
		return true, fmt.Errorf("adopt fork into session %d: %w", id, ErrNoSession)
	}
	delete(t.grants, tok)
	g.parent.grants--
	s.handles.inherit(g.next, g.gens)
	for _, h := range g.holds {
		h.s = s
		if !s.handles.put(h) {
			h.s = nil
			t.release(h, closeOrderly)
		}
	}
	s.handles.settle()
	return true, nil
}

// Drop releases a fork's grant whose child will not come, or what park keeps.
func (t *Table) Drop(tok Token) {
	if g := t.grants[tok]; g != nil {
		delete(t.grants, tok)
		if g.parked {
			g.parent.parks--
		} else {
			g.parent.grants--
		}
		for _, h := range g.holds {
			t.release(h, closeOrderly)
		}
	}
}

// Keep notes that the agent watches the child that a fork's grant waits for.
func (t *Table) Keep(tok Token) {
	if g := t.grants[tok]; g != nil {
		g.kept = true
	}
}

// Waiting counts the forks of a session whose child nobody watches.
func (t *Table) Waiting(id uint64) (n int) {
	for _, g := range t.grants {
		if g.parent.id == id && !g.kept && !g.parked {
			n++
		}
	}
	return n
}

// Expire drops what Waiting counts: the parent died in its fork.
func (t *Table) Expire(id uint64) {
	for tok, g := range t.grants {
		if g.parent.id == id && !g.kept && !g.parked {
			t.Drop(tok)
		}
	}
}

// Transfer gives another session a hold of one socket and returns its handle
// there.
func (t *Table) Transfer(to, from uint64, handle uint32) (uint32, error) {
	dst, src := t.sessions[to], t.sessions[from]
	if dst == nil || src == nil {
		return 0, fmt.Errorf("transfer socket from session %d to %d: %w", from, to, ErrNoSession)
	}
	h := src.handles.get(handle)
	if h == nil || h.sock.from != nil {
		return 0, fmt.Errorf("transfer socket %#x of session %d: no such handle", handle, from)
	}
	return t.transfer(dst, h)
}

func (t *Table) transfer(dst *Session, h *hold) (uint32, error) {
	for _, own := range h.sock.holds {
		if own.s == dst {
			return own.handle, nil
		}
	}
	n := h.handle
	if !dst.handles.reserve(n) {
		var ok bool
		if n, ok = dst.handles.choose(); !ok || dst.handles.count >= maxSockets {
			return 0, fmt.Errorf("transfer socket to session %d: too many sockets", dst.id)
		}
	}
	c := t.hold(dst, h.sock, n)
	c.txSeq, c.txAcked = h.txSeq, h.txSeq
	return n, nil
}

// claim handles Claim: the socket's records go to this channel from now on.
func (t *Table) claim(q *queue, h *hold) {
	s := h.sock
	former := s.at
	h.claimed = q
	t.claims++
	h.asked = t.claims
	if former == h {
		// Another channel of the same process.
		t.settle(s, q)
		s.leaveUnacked()
		s.at, s.home = h, q
		t.post(q, offload.OpClaimed, h.handle, uint32(s.sent), t.ack(h), nil)
	} else {
		if former != nil {
			t.post(s.home, offload.OpRevoked, former.handle, 0, 0, nil)
			former.claimed = s.home
			t.unhome(s, former)
		}
		s.at, s.home = h, q
		if s.u != nil && h.have < s.retainOff {
			// It came by SCM_RIGHTS or exec: what the former holder was sent
			// before is lost to it, and must not count as under way.
			s.consumed = max(s.consumed, s.retainOff)
		}
		s.sent = max(s.consumed, s.retainOff, h.have)
		// The newcomer goes on where the stream is, with a full window.
		h.txSeq = s.received()
		h.txAcked = h.txSeq
		s.finSent = false
		// Before Claimed, heard or not: what it does next depends on it.
		h.told, h.unheard = h.told&shutHalves, false
		t.inform(h)
		t.post(q, offload.OpClaimed, h.handle, uint32(s.consumed), uint32(h.txSeq), nil)
		t.trim(s)
		t.alone(s)
	}
	if s.kind == dead && s.errno != 0 {
		t.post(q, offload.OpError, h.handle, s.errno, 0, nil)
		return
	}
	t.service(s)
}

// alone tells the holder at home when it is the only one.
func (t *Table) alone(s *socket) {
	if s.kind == connected && len(s.holds) == 1 && s.at == s.holds[0] && s.home != nil && !s.home.s.dead {
		t.post(s.home, offload.OpUnshared, s.at.handle, 0, 0, nil)
	}
}

// listens is where a holder that waits for its socket looks: the socket's last
// home there, or the first channel. nil if the session has none.
func (h *hold) listens() *queue {
	if h.claimed != nil {
		return h.claimed
	}
	return h.s.queues[0]
}

// homeless tells the other holders when the one that had a socket has closed it.
func (t *Table) homeless(s *socket) {
	if s.kind != connected || s.at != nil {
		return
	}
	for _, h := range s.holds {
		if h.s == nil || h.s.dead {
			continue
		}
		if q := h.listens(); q != nil {
			t.post(q, offload.OpHomeless, h.handle, 0, 0, nil)
		}
	}
}

// settle makes what went to the former channel visible before the answer to
// a claim is: the host looks there once.
func (t *Table) settle(s *socket, q *queue) {
	o := s.home
	if o == nil || o == q || o.s.dead {
		return
	}
	if len(o.overflow) > 0 {
		kept := o.overflow[:0]
		for _, r := range o.overflow {
			if q.s.handles.get(r.Sock) == s.at && s.at != nil && r.Op != offload.OpReply {
				t.post(q, r.Op, r.Sock, r.Seq, r.Ack, r.payload)
			} else {
				kept = append(kept, r)
			}
		}
		o.overflow = kept
	}
	if o.dirty {
		t.flush(o)
	}
}

// received is how many bytes were taken in from all holders.
func (s *socket) received() uint64 { return s.txBytes }

// maxParks bounds the sockets of one session that are kept under a token.
const maxParks = 16384

// park handles Shared: the socket is on its way to another process. Until hostd
// says that nobody has its descriptor any more (Drop), it lives, as does what
// nobody has read of it.
func (t *Table) park(q *queue, h *hold, rec offload.Record, payload []byte) string {
	s := h.sock
	if len(payload) < offload.ForkReqSize {
		return "short request to share a socket"
	}
	tok := Token(payload[:offload.ForkReqSize])
	if t.grants[tok] != nil {
		return "token used twice"
	}
	if (s.kind == connected || s.kind == datagrams) && !t.consume(s, rec.Ack) {
		return "consumed more than was sent"
	}
	if q.s.parks >= maxParks || s.from != nil || s.kind == connecting || s.kind == dead {
		t.reply(q, rec, uint32(syscall.EAGAIN), nil)
		return ""
	}
	q.s.parks++
	t.letGo(s)
	c := &hold{sock: s, handle: h.handle, txSeq: h.txSeq, txAcked: h.txSeq}
	s.holds = append(s.holds, c)
	t.grants[tok] = &grant{parent: q.s, holds: []*hold{c}, parked: true}
	t.reply(q, rec, 0, binary.LittleEndian.AppendUint32(nil, uint32(s.retainOff)))
	return ""
}

// unread handles Unread: what the host was sent before the socket was
// shared, and has not read, is kept from now on. Blocks come from the last to
// the first; what does not fit before what is kept has been read meanwhile.
func (t *Table) unread(q *queue, h *hold, rec offload.Record, payload []byte) {
	s := h.sock
	off := s.retainOff + uint64(int64(int32(rec.Ack-uint32(s.retainOff))))
	if off >= s.consumed && off+uint64(len(payload)) == s.retainOff && s.keeping() {
		s.retain = append(append(make([]byte, 0, len(payload)+len(s.retain)), payload...), s.retain...)
		s.retainOff = off
	}
	if rec.Seq != 0 {
		t.reply(q, rec, 0, nil)
	}
}

// TransferParked gives a session a hold of a socket that is kept under a
// token, and returns its handle there.
func (t *Table) TransferParked(to uint64, tok Token) (uint32, error) {
	g, dst := t.grants[tok], t.sessions[to]
	if g == nil || !g.parked {
		return 0, errors.New("transfer a socket: nothing is kept under this token")
	}
	if dst == nil {
		return 0, fmt.Errorf("transfer a socket to session %d: %w", to, ErrNoSession)
	}
	return t.transfer(dst, g.holds[0])
}

// DropParked gives up every socket that is kept under a token: who knew
// when to drop them is gone.
func (t *Table) DropParked() {
	for tok, g := range t.grants {
		if g.parked {
			t.Drop(tok)
		}
	}
}

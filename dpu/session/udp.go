// SPDX-License-Identifier: Apache-2.0

package session

import (
	"net/netip"
	"syscall"

	"gvisor.dev/gvisor/pkg/tcpip"

	"pno/dpu/netstack"
	"pno/offload"
)

// Datagram sockets. On the channel a socket's datagrams are a stream of frames
// each way, a Dgram header and its data, with offsets, windows, claims and
// retained bytes as a connection has them. What differs: a frame goes to the
// host whole or not at all, and what finds no room stays in the socket's own
// queue, where it is dropped (and counted) once that is full.

// bindUDP handles Bind: the socket receives from now on, on this channel.
func (t *Table) bindUDP(q *queue, rec offload.Record, req offload.BindReq) string {
	s := t.newUDP(req.Local.Family == 6, req.Flags)
	if err := s.u.Bind(req.Local.AddrPort()); err != nil {
		t.destroy(s, false)
		t.reply(q, rec, uint32(netstack.Errno(err)), nil)
		return ""
	}
	if s.at = t.hold(q.s, s, rec.Sock); s.at == nil {
		t.destroy(s, false)
		return "bind of a slot in use"
	}
	s.home, s.at.claimed = q, q
	t.replyUDP(q, rec, s)
	return ""
}

func (t *Table) newUDP(v6 bool, flags uint32) *socket {
	s := &socket{t: t, kind: datagrams, v6: v6}
	s.u = t.Stack.NewUDP(v6, func() { s.NotifyEvent(0) })
	s.u.Reuse(flags&offload.BindReuseAddr != 0, flags&offload.BindReusePort != 0, flags&offload.BindV6Only != 0)
	t.stats.sockets++
	return s
}

func (t *Table) replyUDP(q *queue, rec offload.Record, s *socket) {
	var b [offload.DgramInfoSize]byte
	offload.DgramInfo{
		Local: offload.AddrFrom(s.u.Local()), Peer: offload.AddrFrom(s.u.Peer()), MTU: uint32(s.u.MTU()),
	}.Put(b[:])
	t.reply(q, rec, 0, b[:])
}

// connectUDP handles Connect, again and again if the program likes: a peer of
// family 0 undoes it. Local, and a new handle, bind as well.
func (t *Table) connectUDP(q *queue, rec offload.Record, h *hold, req offload.ConnectReq) string {
	var s *socket
	switch {
	case h != nil && h.sock.kind == dead:
		t.reply(q, rec, ebadf, nil)
		return ""
	case h != nil && h.sock.kind != datagrams:
		return "connect on a handle in use"
	case h != nil:
		s = h.sock
	case req.Peer.Family == 0:
		return "disconnect of an unknown handle"
	case q.s.handles.count >= maxSockets:
		t.reply(q, rec, uint32(syscall.ENFILE), nil)
		return ""
	default:
		s = t.newUDP(req.Peer.Family == 6, req.Flags)
	}
	if err := t.connectPeer(s, h == nil, req); err != nil {
		if h == nil {
			t.destroy(s, false)
		}
		t.reply(q, rec, uint32(netstack.Errno(err)), nil)
		return ""
	}
	if h == nil {
		if s.at = t.hold(q.s, s, rec.Sock); s.at == nil {
			t.destroy(s, false)
			return "connect on a slot in use"
		}
		s.home, s.at.claimed = q, q
	}
	t.replyUDP(q, rec, s)
	return ""
}

func (t *Table) connectPeer(s *socket, fresh bool, req offload.ConnectReq) tcpip.Error {
	if req.Peer.Family == 0 {
		return s.u.Disconnect()
	}
	peer := hostItself(req.Peer.AddrPort())
	if !peer.Addr().IsValid() || peer.Addr().Is6() && !s.v6 {
		return &tcpip.ErrAddressFamilyNotSupported{}
	}
	if fresh && req.Local.Family != 0 {
		if err := s.u.Bind(req.Local.AddrPort()); err != nil {
			return err
		}
	}
	return s.u.Connect(peer)
}

// sendDgram handles SendDgram.
func (t *Table) sendDgram(h *hold, rec offload.Record, payload []byte) (ok bool, bad string) {
	s := h.sock
	switch gap := int32(rec.Seq - uint32(h.txSeq)); {
	case gap > 0:
		return false, ""
	case gap < 0:
		return true, "datagram behind the stream"
	}
	n := uint64(len(payload))
	window := uint64(h.s.l.TxWindow)
	if len(s.holds) > 1 {
		window *= slack
	}
	switch {
	case s.u == nil:
		return true, "datagram for a connection"
	case h.txSeq+n-h.txAcked > window:
		return true, "datagram beyond the window"
	case !t.consume(s, rec.Ack):
		return true, "consumed more than was sent"
	}
	h.txSeq += n
	s.txBytes += n
	if s.kind != datagrams {
		h.txAcked = h.txSeq
		return true, ""
	}
	part := rec.Flags&offload.FlagPart != 0
	if part || len(s.part) > 0 {
		if len(s.part)+len(payload) > offload.DgramSize+offload.MaxDgram {
			return true, "datagram too long"
		}
		s.part = append(s.part, payload...)
		payload = s.part
	}
	if !part {
		s.part = nil
		if bad = t.sendFrame(h, payload); bad != "" {
			return true, bad
		}
	}
	t.credit(h)
	t.serviceUDP(s) // consumption may have made room
	return true, ""
}

// sendFrame sends the datagram of a whole frame, or the several that it is to
// be cut into.
func (t *Table) sendFrame(h *hold, frame []byte) (bad string) {
	d, err := offload.GetDgram(frame)
	if err != nil || int(d.Len) != len(frame)-offload.DgramSize {
		return "malformed datagram"
	}
	s := h.sock
	o := netstack.Sent{To: hostItself(d.Peer.AddrPort()), From: d.Local.AddrPort().Addr(), TOS: -1}
	if !o.To.Addr().IsValid() {
		o.To = netip.AddrPort{}
	}
	if d.Flags&offload.DgramTOS != 0 {
		o.TOS = int(d.TOS)
	}
	if d.Flags&offload.DgramTTL != 0 {
		o.TTL = d.TTL
	}
	data := frame[offload.DgramSize:]
	size := len(data)
	if d.Segment != 0 {
		size = int(d.Segment)
	}
	t.stats.bytesTx += uint64(len(data))
	h.s.stats.bytesTx += uint64(len(data))
	for i := 0; i < offload.MaxSegments; i++ {
		n := min(size, len(data))
		if err := s.u.Send(data[:n], o); err != nil {
			t.sendFailed(h, err, o.To)
			return ""
		}
		if data = data[n:]; len(data) == 0 {
			break
		}
	}
	return ""
}

// sendFailed tells the host why: a connected socket by its error, another one
// with the destination, so that the next send to that one may fail.
func (t *Table) sendFailed(h *hold, err tcpip.Error, to netip.AddrPort) {
	t.stats.dgramsUnsent++
	s := h.sock
	if _, full := err.(*tcpip.ErrNoBufferSpace); full || s.home == nil || s.at == nil {
		return
	}
	var b []byte
	if to.IsValid() && !s.u.Peer().IsValid() {
		b = make([]byte, offload.AddrSize)
		offload.AddrFrom(to).Put(b)
	}
	t.post(s.home, offload.OpError, s.at.handle, uint32(netstack.Errno(err)), 0, b)
}

// serviceUDP gives credit back, and moves what was received to the host.
func (t *Table) serviceUDP(s *socket) {
	if s.at == nil || s.kind != datagrams {
		return
	}
	t.credit(s.at)
	q := s.home
	if err := s.u.Err(); err != nil {
		t.post(q, offload.OpError, s.at.handle, uint32(netstack.Errno(err)), 0, nil)
	}
	for moved := 0; ; {
		if moved >= bytesATurn {
			t.later(s)
			return
		}
		n, wait := t.nextFrame(s, q)
		if wait {
			t.wait(q, s)
			return
		}
		if n == 0 {
			return
		}
		moved += n
	}
}

// nextFrame moves one frame, retained or new, to the host. It returns 0 if
// there is none or no credit for it; wait means that the ring is full.
func (t *Table) nextFrame(s *socket, q *queue) (n int, wait bool) {
	if s.retained() > 0 {
		return t.replayFrame(s, q)
	}
	r, ok := s.u.Peek()
	if !ok {
		return 0, false
	}
	n = offload.DgramSize + r.Len
	switch {
	case q.neverFits(n):
		s.u.Drop()
		t.stats.dgramsTooLong++
	case n > s.credit():
		return 0, false
	case len(q.overflow) > 0 || !q.qp.Fits(n):
		return 0, true
	default:
		t.receiveFrame(s, q, r, n)
	}
	return n, false
}

// replayFrame sends a retained frame again. What a holder has reported as
// consumed may end within a frame only by ill will: then the rest is dropped.
func (t *Table) replayFrame(s *socket, q *queue) (n int, wait bool) {
	n = s.frameAt(s.sent - s.retainOff)
	switch {
	case n == 0 || q.neverFits(n):
		n = s.retained()
		s.sent += uint64(n)
	case n > s.credit():
		return 0, false
	case len(q.overflow) > 0 || !q.qp.Fits(n):
		return 0, true
	default:
		t.emitFrame(s, q, s.retain[s.sent-s.retainOff:][:n])
	}
	t.trim(s)
	return n, false
}

// neverFits tells whether a frame is too long for the session's window or ring
// even when they are empty.
func (q *queue) neverFits(n int) bool {
	l := &q.s.l
	return n > int(l.RxWindow) || n+2*offload.MaxPayload > int(l.D2HSize)
}

// frameAt is the length of the retained frame that starts at a position of
// retain, 0 if none does.
func (s *socket) frameAt(pos uint64) int {
	b := s.retain[pos:]
	d, err := offload.GetDgram(b)
	if err != nil || offload.DgramSize+int(d.Len) > len(b) {
		return 0
	}
	return offload.DgramSize + int(d.Len)
}

// receiveFrame takes a datagram out of the stack, straight into the ring's
// mirror if it fits one record.
func (t *Table) receiveFrame(s *socket, q *queue, r netstack.Received, n int) {
	d := offload.Dgram{
		Len: uint32(r.Len), Flags: offload.DgramTOS | offload.DgramTTL, TOS: r.TOS, TTL: r.TTL,
		Peer: offload.AddrFrom(r.From), Local: offload.AddrFrom(r.To), Index: ifIndex(r.NIC),
	}
	s.rxBytes += uint64(r.Len)
	t.stats.bytesRx += uint64(r.Len)
	q.s.stats.bytesRx += uint64(r.Len)
	if n > offload.MaxPayload {
		frame := make([]byte, n)
		d.Put(frame)
		s.u.Take(frame[offload.DgramSize:])
		t.keep(s, frame)
		t.emitFrame(s, q, frame)
		return
	}
	b := t.emit(q, offload.OpDgram, s.at.handle, uint32(s.sent), t.ack(s.at), n)
	d.Put(b)
	s.u.Take(b[offload.DgramSize:])
	t.keep(s, b)
	s.sent += uint64(n)
}

// ifIndex is the interface index that the host is told, numbered as on a Linux
// machine: 1 is the loopback, the DPU's ports follow.
func ifIndex(nic uint32) uint32 {
	if nic == netstack.LoopbackNIC {
		return 1
	}
	return nic + 1
}

// keep retains a frame that may have to be sent again.
func (t *Table) keep(s *socket, frame []byte) {
	if s.keeping() {
		s.retain = append(s.retain, frame...)
	} else {
		s.retainOff += uint64(len(frame))
	}
}

// emitFrame sends a frame for which the ring has room, in as many records as
// it takes.
func (t *Table) emitFrame(s *socket, q *queue, frame []byte) {
	for len(frame) > 0 {
		n := min(len(frame), offload.MaxPayload)
		b := q.qp.Reserve(n)
		copy(b, frame)
		frame = frame[n:]
		flags := uint8(0)
		if len(frame) > 0 {
			flags = offload.FlagPart
		}
		q.qp.Commit(offload.OpDgram, flags, s.at.handle, uint32(s.sent), t.ack(s.at), n)
		t.emitted(q)
		s.sent += uint64(n)
	}
}

// getOptUDP handles GetOpt: all that a host may ask is whether an address will
// do as the source of a datagram.
func (t *Table) getOptUDP(q *queue, s *socket, rec offload.Record, o *offload.OptVal) {
	errno := syscall.ENOPROTOOPT
	if o.Level == syscall.IPPROTO_IP && o.Name == syscall.IP_PKTINFO {
		errno = syscall.EINVAL
		if a, err := offload.GetAddr(o.Val[:o.Len]); err == nil {
			errno = netstack.Errno(s.u.CheckSource(a.AddrPort().Addr()))
		}
	}
	var b [offload.OptValSize]byte
	o.Put(b[:])
	t.reply(q, rec, uint32(errno), b[:])
}

// handOver gives a datagram socket whose home is gone to another holder, as if
// that had claimed it: it may sleep until a datagram comes. It is the one that
// has asked for the socket last; one that never has (Node.js keeps what it
// passes to its workers) does not read.
func (t *Table) handOver(s *socket) {
	if s.kind != datagrams || s.at != nil {
		return
	}
	var next *hold
	for _, h := range s.holds {
		if h.s == nil || h.s.dead || h.listens() == nil {
			continue
		}
		if next == nil || h.asked > next.asked {
			next = h
		}
	}
	if next != nil {
		t.claim(next.listens(), next)
	}
}

// destroyUDP gives the socket back to the stack.
func (t *Table) destroyUDP(s *socket) {
	s.u.Close()
	s.u, s.kind = nil, dead
	s.part, s.retain = nil, nil
	t.stats.sockets--
	t.stats.closed++
}

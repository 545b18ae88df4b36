// SPDX-License-Identifier: Apache-2.0

package session

import (
	"io"
	"syscall"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"pno/dpu/netstack"
	"pno/offload"
)

// writer receives what an endpoint's Read gives, up to its size.
type writer struct {
	b []byte
	n int
}

func (w *writer) Write(p []byte) (int, error) {
	n := copy(w.b[w.n:], p)
	w.n += n
	if n < len(p) {
		return n, io.ErrShortWrite
	}
	return n, nil
}

// credit is how many more bytes the host may be sent now.
func (s *socket) credit() int {
	limit := s.consumed + s.at.rxWindow()
	if s.from != nil {
		limit = min(limit, retainMax)
	}
	if s.sent >= limit {
		return 0
	}
	return int(limit - s.sent)
}

// pull moves received data of s to the host, as far as credit and ring space
// go, then the end of the stream or the error.
func (t *Table) pull(s *socket) {
	switch {
	case s.discard && s.shut:
		s.strict.Store(true)
		if t.tooLate(s) {
			t.refuse(s)
		}
	case s.discard:
		t.drain(s)
		return
	}
	q := s.home
	if q == nil {
		return
	}
	if s.keep != nil {
		if s.kind == connected {
			t.gather(s, q)
		}
		return
	}
	for moved := 0; ; {
		n := s.credit()
		if n == 0 {
			return
		}
		if moved >= bytesATurn {
			t.later(s)
			return
		}
		space := q.space()
		if space < 64 {
			t.wait(q, s)
			return
		}
		n = min(n, space)
		got := 0
		if r := s.retained(); r > 0 {
			got = t.replay(s, q, min(n, r))
		} else {
			got = t.receive(s, q, n)
		}
		if got == 0 {
			break
		}
		moved += got
	}
	t.finish(s, q)
}

// replay sends n retained bytes again.
func (t *Table) replay(s *socket, q *queue, n int) int {
	b := t.emit(q, offload.OpData, s.at.handle, uint32(s.sent), t.ack(s.at), n)
	copy(b, s.retain[s.sent-s.retainOff:])
	s.sent += uint64(n)
	t.trim(s)
	return n
}

// receive reads up to n bytes from the stack straight into the ring's mirror.
func (t *Table) receive(s *socket, q *queue, n int) int {
	if s.eof {
		return 0
	}
	b := q.qp.Reserve(n)
	if b == nil {
		return 0
	}
	t.out = writer{b: b}
	_, err := s.ep.Read(&t.out, tcpip.ReadOptions{})
	got := t.out.n
	t.out.b = nil
	if err != nil {
		t.readError(s, err)
	}
	if got == 0 {
		return 0
	}
	q.qp.Commit(offload.OpData, 0, s.at.handle, uint32(s.sent), t.ack(s.at), got)
	t.emitted(q)
	q.asked++
	if s.keeping() {
		s.retain = append(s.retain, b[:got]...)
	} else {
		s.retainOff += uint64(got)
	}
	s.sent += uint64(got)
	s.read(got)
	t.stats.bytesRx += uint64(got)
	q.s.stats.bytesRx += uint64(got)
	return got
}

// moderateEvery is how much is read before the stack is told. It asks for the
// endpoint's lock and the time, too much for each small request.
const moderateEvery = 16 << 10

// read counts what was read from the stack, which fits the window that it
// offers to the peer to how fast that goes. But not while data waits: the stack
// tells the peer of a window that opens when that crosses a threshold by a read;
// one that had grown past it in between would never be told, and the peer, which
// has used up the former one, only ask after 200 ms.
func (s *socket) read(n int) {
	s.rxBytes += uint64(n)
	if s.unmoderated += n; s.unmoderated < moderateEvery {
		return
	}
	if waits, err := s.ep.GetSockOptInt(tcpip.ReceiveQueueSizeOption); err == nil && waits == 0 {
		s.ep.ModerateRecvBuf(s.unmoderated)
		s.unmoderated = 0
	}
}

// readError notes the end of the stream or the socket's death.
func (t *Table) readError(s *socket, err tcpip.Error) {
	switch err.(type) {
	case *tcpip.ErrWouldBlock:
	case *tcpip.ErrClosedForReceive:
		s.eof = true
		if s.state() == tcp.StateError {
			t.dies(s, nil)
		}
	default:
		s.eof = true
		t.dies(s, err)
	}
}

// dies notes why the connection is gone.
func (t *Table) dies(s *socket, err tcpip.Error) {
	if s.errno != 0 {
		return
	}
	if err == nil {
		err = s.ep.LastError()
	}
	s.errno = uint32(netstack.Errno(err))
	if s.errno == 0 {
		s.errno = uint32(syscall.ECONNRESET)
	}
}

// finish reports the end of the stream or the error once all data is sent.
func (t *Table) finish(s *socket, q *queue) {
	if !s.eof && s.state() == tcp.StateError && t.queued(s) == 0 {
		s.eof = true
		t.dies(s, nil)
	}
	if s.eof && s.errno == 0 && s.finSent {
		switch {
		case s.state() == tcp.StateError:
			t.dies(s, nil)
		case s.state() == tcp.StateClose && !s.shut:
			// Reset after its FIN. The kernel's name for it:
			s.errno = uint32(syscall.EPIPE)
		}
	}
	if s.retained() > 0 || !s.eof || s.kind != connected {
		return
	}
	switch {
	case s.errno != 0:
		if t.emit(q, offload.OpError, s.at.handle, s.errno, 0, 0) == nil {
			t.wait(q, s)
			return
		}
		s.kind = dead
		s.stack.Untrack(s.ep)
		t.clear(&s.pend)
	case !s.finSent:
		if t.emit(q, offload.OpFin, s.at.handle, uint32(s.end()), t.ack(s.at), 0) == nil {
			t.wait(q, s)
			return
		}
		s.finSent = true
		t.finish(s, q) // it may have been reset, too
	}
}

// collect keeps what has come so far, for the host to read after it has shut
// both halves.
func (t *Table) collect(s *socket) {
	for n := t.queued(s); n > 0 && !s.eof; n = t.queued(s) {
		b := make([]byte, n)
		t.out = writer{b: b}
		_, err := s.ep.Read(&t.out, tcpip.ReadOptions{})
		got := t.out.n
		t.out.b = nil
		s.retain = append(s.retain, b[:got]...)
		s.rxBytes += uint64(got)
		t.stats.bytesRx += uint64(got)
		if err != nil {
			t.readError(s, err)
		}
	}
}

// tooLate tells whether data has come for a socket since both its halves were
// shut. A program that talks to itself over the loopback may have sent before;
// there, what comes before the peer has seen our FIN is in time.
func (t *Table) tooLate(s *socket) bool {
	if t.queued(s) == 0 {
		return false
	}
	_, peer := s.addrs()
	return s.late.Load() || len(s.holds) == 0 || !t.Stack.IsLocal(peer.Addr())
}

// refuse answers data for a socket with both halves shut as the kernel does:
// with RST. The host hears of it after what it has not read.
func (t *Table) refuse(s *socket) {
	t.stats.resets++
	if len(s.holds) == 0 {
		t.destroy(s, true)
		return
	}
	s.ep.Abort()
	s.eof, s.errno = true, uint32(syscall.ECONNRESET)
	t.clear(&s.pend)
}

// drain throws received data away, so that the peer is not held up.
func (t *Table) drain(s *socket) {
	var scratch [4096]byte
	s.retainOff += uint64(len(s.retain)) // what the host has, it may still read
	s.retain = nil
	if s.keep != nil {
		s.retainOff = s.end()
		t.drop(s)
	}
	for range 64 {
		t.out = writer{b: scratch[:]}
		_, err := s.ep.Read(&t.out, tcpip.ReadOptions{})
		t.out.b = nil
		if err != nil {
			t.readError(s, err)
			break
		}
		s.retainOff += uint64(t.out.n)
	}
	s.sent, s.consumed = s.retainOff, s.retainOff
	if s.home != nil && s.eof {
		t.finish(s, s.home)
	}
}

// consume takes in how much the host has read, given as the low 32 bits of
// the stream offset. It reports false for an offset that was never sent. What
// lies behind is stale, not wrong: two rings may carry reports of one socket.
func (t *Table) consume(s *socket, ack uint32) bool {
	d := int32(ack - uint32(s.consumed))
	if d <= 0 {
		return true
	}
	if s.consumed+uint64(d) > s.sent {
		return false
	}
	if s.at != nil && s.credit() == 0 {
		t.later(s) // more may wait in the stack for this
	}
	s.consumed += uint64(d)
	t.trim(s)
	t.tell(s)
	return true
}

// trim forgets retained bytes that nobody can ask for any more: those that
// the holder at home has, unless the application has not accepted the
// connection yet or another holder may still claim it.
func (t *Table) trim(s *socket) {
	if len(s.retain) == 0 || s.from != nil {
		return
	}
	from := s.sent
	for _, h := range s.holds {
		if h != s.at {
			from = min(from, max(s.consumed, h.have))
		}
	}
	if from <= s.retainOff {
		return
	}
	n := min(int(from-s.retainOff), len(s.retain))
	s.retain = s.retain[n:]
	s.retainOff += uint64(n)
	if len(s.retain) == 0 {
		s.retain = nil
	}
}

// keeping tells whether what is sent must be retained.
func (s *socket) keeping() bool { return s.from != nil || len(s.holds) > 1 }

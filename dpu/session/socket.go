// SPDX-License-Identifier: Apache-2.0

package session

import (
	"net/netip"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"pno/dpu/netstack"
	"pno/offload"
)

// kind is what a socket is good for.
type kind uint8

const (
	bound kind = iota
	listening
	connecting
	connected
	datagrams // UDP, bound
	dead      // an error was reported, or the endpoint is closed
)

// hold is a session's share of a socket: what its handle stands for. A socket
// that several processes have after a fork has several holds.
type hold struct {
	s      *Session // nil for a hold that waits in a fork grant
	sock   *socket
	handle uint32

	// have is the rx offset up to which this holder was sent the data.
	have uint64
	// claimed is the channel on which it last got the socket's records.
	claimed *queue
	// asked orders the holders by their last Claim; 0: it never asked.
	asked uint64
	// txSeq counts the bytes that this holder sent, txAcked those reported to
	// it as taken. With one holder they are the socket's own.
	txSeq, txAcked uint64
	moved          uint64 // up to here in txSeq there are Moves

	// told is what the holder was last told of the socket's standing, toldOff
	// how much had been received then; unheard means that it has not answered.
	told    uint32
	toldOff uint64
	unheard bool

	// rxLimit and txLimit are what SO_RCVBUF and SO_SNDBUF left of the
	// windows; 0 is all. They are set by this holder only, which knows them.
	rxLimit, txLimit uint32
}

// rxWindow and txWindow are the holder's windows.
func (h *hold) rxWindow() uint64 { return limited(h.s.l.RxWindow, h.rxLimit) }
func (h *hold) txWindow() uint64 { return limited(h.s.l.TxWindow, h.txLimit) }

func limited(window, limit uint32) uint64 {
	if limit != 0 && limit < window {
		return uint64(limit)
	}
	return uint64(window)
}

// socket is one socket of the shard: TCP has ep and wq, UDP has u.
type socket struct {
	t     *Table
	stack *netstack.Stack // that of ep
	ep    tcpip.Endpoint
	wq    *waiter.Queue
	u     *netstack.UDP

	entry  waiter.Entry // of wq
	queued atomic.Bool  // in the table's ready list
	next   *socket      // in the table's ready list

	kind kind
	v6   bool

	transparent bool           // may have, and hear for, addresses that are not the DPU's
	twin        tcpip.Endpoint // hears for those, where ep hears for the DPU's own

	waiting bool // in home's line for ring space
	later   bool // in the table's list for the next turn

	holds []*hold
	at    *hold  // the holder that gets the data, nil if nobody does
	home  *queue // where it gets them

	// Receiving. The stream was read from the stack up to retainOff +
	// len(retain); retain holds what may have to be sent again.
	sent      uint64 // to the holder at home
	consumed  uint64 // as reported by the hosts
	retain    []byte
	retainOff uint64
	eof       bool // the peer sends no more, after what was read
	finSent   bool
	discard   bool        // shutdown for reading: what comes is thrown away, or refused
	shutRead  bool        // a holder has shut it down for reading
	strict    atomic.Bool // both halves are shut, so late is to be set
	late      atomic.Bool // data came after the peer had seen our FIN
	errno     uint32
	keep      *keep // what comes stays here: see hold.go
	untold    bool  // in the table's list

	// Sending.
	pend    backlog // from the host, not taken by the stack
	part    []byte  // of a datagram, whose rest follows
	cork    bool    // the last Send said that more follows
	corked  bool    // TCP_CORK is set
	uncork  int64   // when what the stack keeps back for that is sent; 0: it keeps nothing
	shut    bool    // FIN after pend
	shutEnd bool    // FIN is with the stack
	taken   uint64  // bytes given to the stack
	unacked int     // its place in home's list, from 1; 0: it is in none

	// Listener.
	l *listener

	// A connection that the application has not accepted yet.
	from *socket
	sub  *subscription

	rxBytes, txBytes uint64
	unmoderated      int // of rxBytes, the last ones: see read
}

// events are all that the loop wants to hear of.
const events = waiter.ReadableEvents | waiter.WritableEvents | waiter.EventErr | waiter.EventHUp | waiter.EventRdHUp

// NotifyEvent implements waiter.EventListener. Any goroutine of the stack
// calls it, holding locks of the endpoint.
func (s *socket) NotifyEvent(what waiter.EventMask) {
	if s.strict.Load() && what&waiter.ReadableEvents != 0 && s.state() == tcp.StateFinWait2 {
		s.late.Store(true)
	}
	if s.t.ready.push(s) {
		s.t.Wake()
	}
}

// newSocket wraps an endpoint and subscribes to its events.
func (t *Table) newSocket(st *netstack.Stack, ep tcpip.Endpoint, wq *waiter.Queue, k kind, v6 bool) *socket {
	s := &socket{t: t, stack: st, ep: ep, wq: wq, kind: k, v6: v6}
	s.entry.Init(s, events)
	wq.EventRegister(&s.entry)
	t.stats.sockets++
	return s
}

// hold enters s into a session's table.
func (t *Table) hold(s *Session, sock *socket, handle uint32) *hold {
	h := &hold{s: s, sock: sock, handle: handle}
	if !s.handles.put(h) {
		return nil
	}
	sock.holds = append(sock.holds, h)
	return h
}

// closing says how a hold is released.
type closing uint8

const (
	closeOrderly closing = iota
	closeReset           // the host asks for RST
	closeDeath           // the process is gone
	closeDrop            // the connection goes back to its listener
)

// release takes a hold out of its session; the last one closes the socket.
func (t *Table) release(h *hold, how closing) {
	s := h.sock
	if h.s != nil {
		h.s.handles.remove(h)
	}
	for i, other := range s.holds {
		if other == h {
			s.holds = append(s.holds[:i], s.holds[i+1:]...)
			break
		}
	}
	if s.at == h {
		t.unhome(s, h)
		defer t.handOver(s)
	}
	if s.l != nil {
		t.unsubscribeSession(s, h.s)
	}
	if s.from != nil && how != closeReset {
		// Announced, never accepted: the listener's other subscribers get it.
		if t.handBack(s) {
			return
		}
		how = closeReset
	}
	if len(s.holds) == 0 {
		t.shutdownSocket(s, how)
	} else {
		t.trim(s)
		t.alone(s)
		t.homeless(s)
		t.tell(s)
	}
}

// unhome makes nobody the receiver of s.
func (t *Table) unhome(s *socket, h *hold) {
	h.have = s.sent
	h.told, h.toldOff = h.told&shutHalves, s.sent
	s.leaveUnacked()
	s.at, s.home = nil, nil
}

// shutdownSocket closes a socket that nobody holds any more.
func (t *Table) shutdownSocket(s *socket, how closing) {
	t.forgetUnaccepted(s)
	switch s.kind {
	case listening:
		t.closeListener(s)
		t.destroy(s, false)
	case connected:
		unread := s.sent != s.consumed || s.retained()+s.onHold()+t.queued(s) > 0
		switch {
		case how == closeReset || unread && !s.discard && s.errno == 0:
			t.stats.resets++
			t.destroy(s, true)
		case s.pend.len() > 0:
			s.shut, s.discard, s.cork = true, true, false
			t.orphans[s] = struct{}{}
			t.service(s)
		default:
			t.destroy(s, false)
		}
	default:
		t.destroy(s, false)
	}
}

// destroy gives the endpoint back to the stack, which goes on by itself with
// what an orderly close needs.
func (t *Table) destroy(s *socket, reset bool) {
	if s.u != nil {
		t.destroyUDP(s)
		return
	}
	if s.ep == nil {
		return
	}
	s.wq.EventUnregister(&s.entry)
	delete(t.orphans, s)
	t.closeTwin(s)
	if reset {
		s.stack.Untrack(s.ep)
		s.ep.Abort()
	} else {
		s.stack.Leave(s.ep)
	}
	s.ep.Close()
	s.ep, s.kind = nil, dead
	t.clear(&s.pend)
	t.drop(s)
	s.retain = nil
	t.stats.sockets--
	t.stats.closed++
}

// queued is how many received bytes wait in the stack.
func (t *Table) queued(s *socket) int {
	if s.ep == nil || s.kind != connected {
		return 0
	}
	n, err := s.ep.GetSockOptInt(tcpip.ReceiveQueueSizeOption)
	if err != nil {
		return 0
	}
	return n
}

// retained is how many bytes wait in retain for the holder at home.
func (s *socket) retained() int {
	end := s.retainOff + uint64(len(s.retain))
	if s.sent >= end {
		return 0
	}
	return int(end - s.sent)
}

func (s *socket) state() tcp.EndpointState {
	if s.ep == nil {
		return tcp.StateClose
	}
	return tcp.EndpointState(s.ep.State())
}

// pair returns the addresses of a connection.
func (s *socket) pair() (p offload.AddrPair) {
	local, peer := s.addrs()
	return offload.AddrPair{Local: offload.AddrFrom(local), Peer: offload.AddrFrom(peer)}
}

func (s *socket) addrs() (local, peer netip.AddrPort) {
	if s.u != nil {
		return s.u.Local(), s.u.Peer()
	}
	if s.ep == nil {
		return
	}
	if a, err := s.ep.GetLocalAddress(); err == nil {
		local = netstack.AddrPort(a, s.v6)
	}
	if s.kind == connected || s.kind == connecting {
		if a, err := s.ep.GetRemoteAddress(); err == nil {
			peer = netstack.AddrPort(a, s.v6)
		}
	}
	return
}

// service looks at everything that s may have to do.
func (t *Table) service(s *socket) {
	switch s.kind {
	case listening:
		t.accept(s)
	case connecting:
		t.connectDone(s)
	case connected:
		if s.pend.len() > 0 && !s.cork {
			t.push(s)
		} else if s.at != nil {
			t.credit(s.at)
		}
		if s.kind == connected {
			t.pull(s)
		}
		t.tell(s)
	case datagrams:
		t.serviceUDP(s)
	case dead:
		if s.retained() > 0 && s.at != nil {
			t.pull(s) // what was on hold when it died
		}
	}
}

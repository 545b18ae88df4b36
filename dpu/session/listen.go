// SPDX-License-Identifier: Apache-2.0

package session

import (
	"net/netip"
	"syscall"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"pno/dpu/netstack"
	"pno/offload"
)

const ebadf = uint32(syscall.EBADF)

// maxBacklog is Linux's default of net.core.somaxconn.
const maxBacklog = 4096

// listener is what a listening socket has besides.
type listener struct {
	backlog int
	subs    []*subscription
	turn    int
	// parked are connections that were announced to a subscriber which is
	// gone, while no other had room.
	parked []*socket
	opts   []offload.OptVal // set on the listener, inherited by connections
}

// subscription is a channel that wants connections of a listener.
type subscription struct {
	q          *queue
	h          *hold // the subscriber's hold of the listener
	limit      int
	unaccepted []*socket
}

// newEndpoint makes a TCP endpoint of a stack.
func newEndpoint(st *netstack.Stack, v6 bool) (tcpip.Endpoint, *waiter.Queue, tcpip.Error) {
	wq := new(waiter.Queue)
	addr := netip.IPv4Unspecified()
	if v6 {
		addr = netip.IPv6Unspecified()
	}
	ep, err := st.NewEndpoint(tcp.ProtocolNumber, netstack.NetProto(addr), wq)
	return ep, wq, err
}

// bind handles Bind: it makes the socket and reserves its address.
func (t *Table) bind(q *queue, rec offload.Record, payload []byte) string {
	req, err := offload.GetBindReq(payload)
	switch {
	case err != nil:
		return "short bind request"
	case side(rec.Sock) == 0:
		return "bind to a handle of the DPU's"
	case q.s.handles.get(rec.Sock) != nil:
		return "bind of a handle in use"
	case req.Local.Family != 4 && req.Local.Family != 6:
		t.reply(q, rec, uint32(syscall.EAFNOSUPPORT), nil)
		return ""
	case req.Proto != offload.ProtoTCP && req.Proto != offload.ProtoUDP:
		t.reply(q, rec, uint32(syscall.EPROTONOSUPPORT), nil)
		return ""
	case q.s.handles.count >= maxSockets:
		t.reply(q, rec, uint32(syscall.ENFILE), nil)
		return ""
	}
	if req.Proto == offload.ProtoUDP {
		return t.bindUDP(q, rec, req)
	}
	s, errno := t.boundSocket(q.s, req.Local, req.Flags)
	if errno != 0 {
		t.reply(q, rec, uint32(errno), nil)
		return ""
	}
	if t.hold(q.s, s, rec.Sock) == nil {
		t.destroy(s, false)
		return "bind of a slot in use"
	}
	local, _ := s.addrs()
	var b [offload.AddrSize]byte
	offload.AddrFrom(local).Put(b[:])
	t.reply(q, rec, 0, b[:])
	return ""
}

// boundSocket makes a socket bound to an address.
func (t *Table) boundSocket(ss *Session, local offload.Addr, flags uint32) (*socket, syscall.Errno) {
	if errno := t.mayBind(ss, local.AddrPort().Addr(), flags); errno != 0 {
		return nil, errno
	}
	v6 := local.Family == 6
	addr := local.AddrPort()
	st, errno := t.stackOf(addr.Addr())
	if errno != 0 {
		return nil, errno
	}
	v6only, reuse, share := flags&offload.BindV6Only != 0, flags&offload.BindReuseAddr != 0, flags&offload.BindReusePort != 0
	if !v6only && t.Stack.PortWaits(addr, reuse, share) {
		return nil, syscall.EADDRINUSE
	}
	ep, wq, err := newEndpoint(st, v6)
	if err != nil {
		return nil, netstack.Errno(err)
	}
	o := ep.SocketOptions()
	o.SetReuseAddress(reuse)
	o.SetReusePort(share)
	if v6 {
		o.SetV6Only(v6only)
	}
	to := netstack.Full(addr)
	if st != t.Stack {
		to = st.LocalTowards(addr, netip.Addr{})
	}
	if err := ep.Bind(to); err != nil {
		ep.Close()
		return nil, netstack.Errno(err)
	}
	s := t.newSocket(st, ep, wq, bound, v6)
	return s, t.setTransparent(s, flags&offload.BindTransparent != 0)
}

// listen handles Listen, also to change the backlog.
func (t *Table) listen(q *queue, h *hold, rec offload.Record) {
	s := h.sock
	if s.kind != bound && s.kind != listening {
		t.reply(q, rec, uint32(syscall.EINVAL), nil)
		return
	}
	backlog := min(int(rec.Ack), maxBacklog) + 1 // as Linux counts, who takes what is below 0 for many
	if err := s.ep.Listen(backlog); err != nil {
		t.reply(q, rec, uint32(netstack.Errno(err)), nil)
		return
	}
	if errno := t.listenTwin(s, backlog); errno != 0 {
		t.reply(q, rec, uint32(errno), nil)
		return
	}
	if s.l == nil {
		s.l = &listener{}
	}
	s.l.backlog, s.kind = backlog, listening
	t.reply(q, rec, 0, nil)
}

// subscribe handles Subscribe.
func (t *Table) subscribe(q *queue, h *hold, rec offload.Record) string {
	s := h.sock
	if s.kind != listening {
		return ""
	}
	limit := int(min(rec.Ack, maxBacklog))
	if limit == 0 {
		return "subscription to no connections"
	}
	sub := s.l.find(q)
	if sub == nil {
		sub = &subscription{q: q, h: h}
		s.l.subs = append(s.l.subs, sub)
	}
	sub.limit = limit
	t.accept(s)
	return ""
}

func (l *listener) find(q *queue) *subscription {
	for _, sub := range l.subs {
		if sub.q == q {
			return sub
		}
	}
	return nil
}

// choose returns the subscriber with the fewest unaccepted connections among
// those with room, in turn among equals. full tells that one would do but for
// ring space.
func (l *listener) choose() (best *subscription, full *queue) {
	for i := range l.subs {
		sub := l.subs[(l.turn+i)%len(l.subs)]
		if len(sub.unaccepted) >= sub.limit {
			continue
		}
		if sub.q.space() < offload.AddrPairSize {
			full = sub.q
			continue
		}
		if best == nil || len(sub.unaccepted) < len(best.unaccepted) {
			best = sub
		}
	}
	if best != nil {
		l.turn++
	}
	return best, full
}

// accept announces waiting connections to subscribers.
func (t *Table) accept(s *socket) {
	l := s.l
	for s.kind == listening && len(l.subs) > 0 {
		sub, full := l.choose()
		if sub == nil {
			if full != nil {
				t.wait(full, s)
			}
			return
		}
		if len(l.parked) > 0 {
			c := l.parked[0]
			l.parked = l.parked[1:]
			t.announce(s, c, sub)
			continue
		}
		c := t.acceptOne(s)
		if c == nil {
			return
		}
		t.inheritOpts(s, c)
		t.stats.accepted++
		t.announce(s, c, sub)
	}
}

// acceptOne takes a connection out of the stack's queue.
func (t *Table) acceptOne(s *socket) *socket {
	st, from := s.stack, s.ep
	ep, wq, err := from.Accept(nil)
	if err != nil && s.twin != nil {
		st, _ = t.Stack.Foreign() // which is there
		from = s.twin
		ep, wq, err = from.Accept(nil)
	}
	if err != nil {
		return nil
	}
	c := t.newSocket(st, ep, wq, connected, s.v6)
	c.transparent = s.transparent
	st.Track(ep, from)
	return c
}

// announce gives a connection to a subscriber, with all that was received on
// it. The caller made sure of ring space for the Accept.
func (t *Table) announce(s, c *socket, sub *subscription) {
	to := sub.q.s
	handle, ok := to.handles.choose()
	if !ok || to.handles.count >= maxSockets {
		t.destroy(c, true)
		return
	}
	h := t.hold(to, c, handle)
	if h == nil {
		t.destroy(c, true)
		return
	}
	c.from, c.sub, c.at, c.home = s, sub, h, sub.q
	c.sent, c.consumed, c.finSent = 0, 0, false
	sub.unaccepted = append(sub.unaccepted, c)
	b := t.emit(sub.q, offload.OpAccept, handle, sub.h.handle, 0, offload.AddrPairSize)
	c.pair().Put(b)
	t.service(c)
}

// accepted handles Accepted: the application took the connection.
func (t *Table) accepted(h *hold) {
	c := h.sock
	s := c.from
	if s == nil {
		return
	}
	t.forgetUnaccepted(c)
	t.trim(c)
	t.service(c)
	t.service(s)
}

// forgetUnaccepted takes c out of its subscriber's count.
func (t *Table) forgetUnaccepted(c *socket) {
	if sub := c.sub; sub != nil {
		for i, o := range sub.unaccepted {
			if o == c {
				last := len(sub.unaccepted) - 1
				sub.unaccepted[i] = sub.unaccepted[last]
				sub.unaccepted[last] = nil
				sub.unaccepted = sub.unaccepted[:last]
				break
			}
		}
	}
	c.from, c.sub = nil, nil
}

// acceptBack handles AcceptBack.
func (t *Table) acceptBack(h *hold) {
	if h.sock.from != nil {
		t.release(h, closeDrop)
	}
}

// handBack returns an announced connection, already without holder, to its
// listener. It reports false if the listener is gone.
func (t *Table) handBack(c *socket) bool {
	s := c.from
	t.forgetUnaccepted(c)
	if s.kind != listening || len(s.holds) == 0 || c.kind != connected {
		return false
	}
	c.sent, c.consumed, c.finSent = 0, 0, false
	t.stats.handedOver++
	s.l.parked = append(s.l.parked, c)
	t.later(s)
	return true
}

// unsubscribe handles Unsubscribe: what was announced on this channel and not
// accepted goes to the others.
func (t *Table) unsubscribe(q *queue, h *hold, rec offload.Record) {
	s := h.sock
	if s.l != nil {
		if sub := s.l.find(q); sub != nil {
			t.endSubscription(s, sub)
		}
	}
	if rec.Seq != 0 {
		t.reply(q, rec, 0, nil)
	}
}

func (t *Table) endSubscription(s *socket, sub *subscription) {
	for i, o := range s.l.subs {
		if o == sub {
			s.l.subs = append(s.l.subs[:i], s.l.subs[i+1:]...)
			break
		}
	}
	for len(sub.unaccepted) > 0 {
		t.release(sub.unaccepted[len(sub.unaccepted)-1].at, closeDrop)
	}
}

// unsubscribeSession ends every subscription of a session to a listener.
func (t *Table) unsubscribeSession(s *socket, ss *Session) {
	for i := len(s.l.subs) - 1; i >= 0; i-- {
		if sub := s.l.subs[i]; sub.q.s == ss {
			t.endSubscription(s, sub)
		}
	}
}

// closeListener resets what no application will accept any more.
func (t *Table) closeListener(s *socket) {
	for _, c := range s.l.parked {
		t.destroy(c, true)
	}
	s.l.parked = nil
}

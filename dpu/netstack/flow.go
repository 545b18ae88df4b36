// SPDX-License-Identifier: Apache-2.0

package netstack

import (
	"encoding/binary"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// ackDelay is how long an acknowledgement of at most one segment may wait for
// data that carries it. RFC 1122 allows half a second and Linux takes 40 ms;
// this is only as long as an application takes to answer.
const ackDelay = int64(500 * time.Microsecond)

// flowKey names an IPv4 connection as the stack sees it.
type flowKey struct {
	local, peer         [4]byte
	localPort, peerPort uint16
}

// flow is an established connection known to the fast path.
type flow struct {
	ep  *tcp.Endpoint // nil once it is in TIME-WAIT, see bury
	tcp queuer        // of its stack
	key flowKey

	accepted bool // by a listener of the shard's own stack, so it can be buried
	reuse    bool // that listener has SO_REUSEADDR

	// Guarded by flows.mu.
	head  pattern             // of what it sends
	final timeWait            // what remains in TIME-WAIT, as of the last packet sent
	ended bool                // it has come to TIME-WAIT
	acked uint32              // acknowledgement number last sent
	held  *stack.PacketBuffer // an acknowledgement that waits for data
	until int64               // when it must go
	left  bool                // see Leave: no data follows
}

// flows lets established connections take a short way through the stack:
//
//   - Received segments go straight to their endpoint. The checks of the IP
//     layer that matter (header checksum, lengths, no fragment, no options)
//     are made here; whatever is unusual takes the long way. A SYN, and what
//     comes before the connection is accepted, skips the IP layer as well.
//   - An acknowledgement of at most a full segment is held back until data
//     follows that carries it, a second one is due, or ackDelay has passed.
//     The stack acknowledges each batch at once, which costs a frame for every
//     request otherwise.
//
// The loop adds and removes flows and looks them up in Deliver. The stack's
// goroutines look them up as they send, under mu.
type flows struct {
	mss uint32
	now atomic.Int64 // the loop's clock, as of this turn

	mu    sync.Mutex
	table map[flowKey]*flow
	due   []heldAck // guarded by mu, oldest first
	saved uint64    // guarded by mu: acknowledgements that data carried
	left  []leaving // guarded by mu, oldest first
	last  []*flow   // guarded by mu: those that left long ago
	next  int       // guarded by mu: the one of last to be looked at next
	look  int64     // guarded by mu: when to look through left and last again
	waits timeWaits // guarded by mu
}

// leaving is an entry of the line of connections that end by themselves.
type leaving struct {
	f     *flow
	until int64
}

// leaveDelay is how long such a connection is expected to take. Its last frames
// come after a round trip, if at all; a peer that takes longer is one in many, and
// it is looked at but once in this time.
const leaveDelay = int64(time.Second)

// lookDelay is how often the line is looked through for those that are over
// already, as most are then.
const lookDelay = int64(50 * time.Millisecond)

// heldAck is an entry of the line of held acknowledgements; it is void if the
// flow holds none, or a later one.
type heldAck struct {
	f     *flow
	until int64
}

// queuer is what gVisor's TCP has for packets whose endpoint is known.
type queuer interface {
	QueuePacket(stack.TransportEndpoint, stack.TransportEndpointID, *stack.PacketBuffer)
}

// Track takes a connection into the fast path; listener is the endpoint that it
// was accepted from, nil if it was not. Called by the loop.
func (s *Stack) Track(ep, listener tcpip.Endpoint) {
	e, k, ok := keyOf(ep)
	if !ok || s.queuer == nil {
		return
	}
	f := &flow{ep: e, tcp: s.queuer, key: k}
	e.LockUser()
	e.SetOwner(f)
	e.UnlockUser()
	if listener != nil && s.buries {
		f.accepted, f.reuse = true, listener.SocketOptions().GetReuseAddress()
	}
	s.flows.mu.Lock()
	defer s.flows.mu.Unlock()
	s.flows.table[k] = f
}

// Untrack takes a connection out of the fast path. Called by the loop.
func (s *Stack) Untrack(ep tcpip.Endpoint) {
	s.untrack(ep, s.flows.drop)
}

// Leave is Untrack for a connection that is closed and ends by itself: what
// remains of it, mostly a FIN and its acknowledgement each way, goes the short
// way too. Called by the loop.
func (s *Stack) Leave(ep tcpip.Endpoint) {
	s.untrack(ep, func(f *flow) {
		f.left = true
		s.flows.left = append(s.flows.left, leaving{f, s.flows.now.Load() + leaveDelay})
	})
}

// untrack has a connection hold back nothing any more.
func (s *Stack) untrack(ep tcpip.Endpoint, how func(*flow)) {
	e, k, ok := keyOf(ep)
	if !ok {
		return
	}
	s.flows.mu.Lock()
	f := s.flows.table[k]
	if f == nil || f.ep != e {
		s.flows.mu.Unlock()
		return
	}
	how(f)
	held := f.held
	f.held = nil
	if held != nil {
		f.head.whole(held)
	}
	f.head.port = nil
	s.flows.mu.Unlock()
	if held != nil {
		s.sendHeld(held)
	}
}

// sendHeld queues an acknowledgement that was held back at the port that it
// was meant for; a shard has few.
func (s *Stack) sendHeld(p *stack.PacketBuffer) {
	for _, e := range s.ports {
		if e.mac == p.EgressRoute.LocalLinkAddress {
			e.enqueue(p)
			return
		}
	}
	p.DecRef()
}

func keyOf(ep tcpip.Endpoint) (*tcp.Endpoint, flowKey, bool) {
	e, ok := ep.(*tcp.Endpoint)
	if !ok {
		return nil, flowKey{}, false
	}
	id := &e.TransportEndpointInfo.ID
	if id.LocalAddress.Len() != 4 || id.RemoteAddress.Len() != 4 {
		return nil, flowKey{}, false
	}
	return e, flowKey{
		id.LocalAddress.As4(), id.RemoteAddress.As4(), id.LocalPort, id.RemotePort,
	}, true
}

const (
	ipv4Len = 20
	tcpLen  = 20
	ethLen  = header.EthernetMinimumSize
)

// inbound is a received TCP segment over IPv4 without anything unusual, which
// may take a short way.
type inbound struct {
	key   flowKey
	frame []byte // up to the segment's end
	hdr   int    // length of the TCP header
}

// parse makes those checks of the IP layer that matter.
func parse(f []byte) (g inbound, ok bool) {
	if len(f) < ethLen+ipv4Len+tcpLen || f[12] != 8 || f[13] != 0 {
		return g, false
	}
	ip := f[ethLen:]
	total := int(binary.BigEndian.Uint16(ip[2:]))
	if ip[0] != 0x45 || ip[9] != 6 || binary.BigEndian.Uint16(ip[6:])&0x3fff != 0 ||
		total < ipv4Len+tcpLen || total > len(ip) || checksum.Checksum(ip[:ipv4Len], 0) != 0xffff {
		return g, false
	}
	th := ip[ipv4Len:]
	g.hdr = int(th[12]>>4) * 4
	if g.hdr < tcpLen || g.hdr > total-ipv4Len {
		return g, false
	}
	g.key = flowKey{
		[4]byte(ip[16:20]), [4]byte(ip[12:16]), binary.BigEndian.Uint16(th[2:]), binary.BigEndian.Uint16(th),
	}
	g.frame = f[:ethLen+total]
	return g, true
}

// tcp is the segment with its header.
func (g *inbound) tcp() []byte { return g.frame[ethLen+ipv4Len:] }

// lookup finds the flow that takes a segment.
func (t *flows) lookup(g *inbound) *flow {
	if g.tcp()[13]&uint8(header.TCPFlagSyn|header.TCPFlagRst) != 0 {
		return nil
	}
	fl := t.table[g.key]
	if fl == nil {
		return nil
	}
	switch fl.ep.EndpointState() {
	case tcp.StateEstablished, tcp.StateFinWait1, tcp.StateFinWait2, tcp.StateCloseWait, tcp.StateLastAck, tcp.StateClosing:
		return fl
	}
	return nil
}

// id is what the stack calls the connection.
func (g *inbound) id() stack.TransportEndpointID {
	return stack.TransportEndpointID{
		LocalPort: g.key.localPort, LocalAddress: tcpip.AddrFrom4(g.key.local),
		RemotePort: g.key.peerPort, RemoteAddress: tcpip.AddrFrom4(g.key.peer),
	}
}

// queue hands a segment to its endpoint.
func (g *inbound) queue(to queuer, ep *tcp.Endpoint, nic tcpip.NICID) {
	p := stack.NewPacketBuffer(stack.PacketBufferOptions{
		Payload: buffer.MakeWithView(buffer.NewViewWithData(g.frame)),
	})
	queuePacket(p, g.hdr, to, ep, g.id(), nic)
}

// queuePacket hands a frame with a TCP header of hdr bytes to its endpoint, and
// lets go of it.
func queuePacket(p *stack.PacketBuffer, hdr int, to queuer, ep *tcp.Endpoint, id stack.TransportEndpointID, nic tcpip.NICID) {
	p.LinkHeader().Consume(ethLen)
	p.NetworkHeader().Consume(ipv4Len)
	p.TransportHeader().Consume(hdr)
	p.NetworkProtocolNumber, p.TransportProtocolNumber = header.IPv4ProtocolNumber, header.TCPProtocolNumber
	p.PktType, p.NICID, p.InputNICID = tcpip.PacketHost, nic, nic
	to.QueuePacket(ep, id, p)
	p.DecRef()
}

// sending looks at a packet that the stack sends by a port and reports whether it
// is held back.
func (t *flows) sending(e *Endpoint, p *stack.PacketBuffer) (hold bool) {
	if p.NetworkProtocolNumber != header.IPv4ProtocolNumber || p.TransportProtocolNumber != header.TCPProtocolNumber {
		return false
	}
	ip, th := p.NetworkHeader().Slice(), p.TransportHeader().Slice()
	if len(ip) != ipv4Len || len(th) < tcpLen {
		return false
	}
	k := flowKey{
		[4]byte(ip[12:16]), [4]byte(ip[16:20]), binary.BigEndian.Uint16(th), binary.BigEndian.Uint16(th[2:]),
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if th[13]&uint8(header.TCPFlagSyn) != 0 {
		t.waits.remove(k) // these addresses have a new connection
		return false
	}
	fl := t.table[k]
	if fl == nil {
		return false
	}
	// One that acknowledges from TIME-WAIT has a timer: see inTimeWait.
	if fl.left && fl.accepted && !fl.ended && p.Data().Size() == 0 && fl.ep.EndpointState() != tcp.StateTimeWait {
		fl.final = remains(th, t.now.Load())
		t.waits.last = fl
	}
	fl.learn(e, p, ip, t.now.Load())
	return t.holds(fl, p, th)
}

// holds notes what a packet of fl's acknowledges. It reports whether the packet
// says nothing else and may wait: then it takes a reference. mu is held.
func (t *flows) holds(fl *flow, p *stack.PacketBuffer, th []byte) bool {
	ack := binary.BigEndian.Uint32(th[8:])
	gained := ack - fl.acked
	// Only a plain acknowledgement that is news may wait: without SACK
	// blocks, hence at most timestamps as options, and with an open window.
	plain := th[13] == uint8(header.TCPFlagAck) && len(th) <= tcpLen+12 &&
		binary.BigEndian.Uint16(th[14:]) != 0 && p.Data().Size() == 0
	if plain && !fl.left && fl.held == nil && gained > 0 && gained <= t.mss {
		fl.held, fl.until = p.IncRef(), t.now.Load()+ackDelay
		t.due = append(t.due, heldAck{fl, fl.until})
		return true
	}
	fl.acked = ack
	if fl.held != nil {
		fl.held.DecRef()
		fl.held = nil
		t.saved++
	}
	return false
}

// expire returns the acknowledgements that have waited long enough, and when
// the next one will have (0: none waits).
func (t *flows) expire(list []*stack.PacketBuffer) (_ []*stack.PacketBuffer, next int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now, n := t.now.Load(), 0
	for ; n < len(t.due); n++ {
		d := t.due[n]
		if d.f.held == nil || d.f.until != d.until {
			continue
		}
		if d.until > now {
			break
		}
		list = append(list, d.f.head.whole(d.f.held))
		d.f.acked = binary.BigEndian.Uint32(d.f.held.TransportHeader().Slice()[8:])
		d.f.held = nil
	}
	if n > 0 {
		t.due = append(t.due[:0], t.due[n:]...)
	}
	t.forget(now)
	if len(t.due) > 0 {
		next = t.due[0].until
	}
	return list, next
}

// forget drops connections that have left and are over. An endpoint is some 8 KB
// with what it points to, and the heap may grow to three times what lives: the line
// must not hold 10,000 of them a second. One whose TIME-WAIT will be a record is
// known until it comes there, however long its peer takes. mu is held.
func (t *flows) forget(now int64) {
	if now < t.look || len(t.left)+len(t.last) == 0 {
		return
	}
	t.look = now + lookDelay
	kept := t.left[:0]
	for _, l := range t.left {
		switch late := l.until <= now; {
		case l.f.over() || late && !l.f.accepted:
			t.drop(l.f)
		case late:
			t.last = append(t.last, l.f)
		default:
			kept = append(kept, l)
		}
	}
	clear(t.left[len(kept):])
	t.left = kept
	const turns = int(leaveDelay / lookDelay)
	for n := (len(t.last) + turns - 1) / turns; n > 0; n-- {
		t.lookAtLast()
	}
}

// lookAtLast looks at one of those that left long ago. mu is held.
func (t *flows) lookAtLast() {
	if t.next >= len(t.last) {
		t.next = 0
	}
	f := t.last[t.next]
	if !f.over() {
		t.next++
		return
	}
	t.drop(f)
	end := len(t.last) - 1
	t.last[t.next], t.last[end] = t.last[end], nil
	t.last = t.last[:end]
}

// over tells whether nothing is left of a connection, or only what is no
// endpoint.
func (f *flow) over() bool {
	if f.ep == nil {
		return true
	}
	state := f.ep.EndpointState()
	return state == tcp.StateClose || state == tcp.StateError
}

// drop takes a connection out of the table, if it still has its addresses. What
// it sends is not seen any more, so it is none that inTimeWait knows. mu is held.
func (t *flows) drop(f *flow) {
	if t.table[f.key] == f {
		delete(t.table, f.key)
	}
	if t.waits.last == f {
		t.waits.last = nil
	}
}

// Holds reports whether acknowledgements are held back, or were a moment ago.
func (s *Stack) Holds() bool {
	s.flows.mu.Lock()
	defer s.flows.mu.Unlock()
	return len(s.flows.due) > 0
}

// Tick sets the loop's clock and queues the acknowledgements that have waited
// for data long enough. It returns when the next one will have, 0 if none
// waits. Called by the loop only.
func (s *Stack) Tick(now int64) (next int64) {
	s.flows.now.Store(now)
	s.bury(now)
	s.expired, next = s.flows.expire(s.expired[:0])
	for i, p := range s.expired {
		s.sendHeld(p)
		s.expired[i] = nil
	}
	return next
}

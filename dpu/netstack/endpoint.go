// SPDX-License-Identifier: Apache-2.0

package netstack

import (
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// maxHeld bounds the packets that wait for the wire, against a link that is
// stuck: TCP's windows keep a healthy stack far below it. Beyond it packets
// are refused (and counted), which TCP takes as loss.
const maxHeld = 1 << 16

// Endpoint is the stack's side of one network port. The stack (its TCP
// processor, timers and the shard's loop) writes packets into it; the loop
// takes them out in batches and hands in what was received.
//
// Packets are never dropped because the device is busy: they wait here.
type Endpoint struct {
	mac   tcpip.LinkAddress
	mtu   uint32
	nic   tcpip.NICID
	stack *Stack
	flows *flows // of the stack

	own4, own6 netip.Addr // by which it asks for its neighbours, if any
	own        [][4]byte  // all of the port's IPv4 addresses

	// wake is called when a packet is queued; it must be cheap and must not
	// block.
	wake func()

	attached atomic.Pointer[stack.NetworkDispatcher]

	mu      sync.Mutex
	queue   []*stack.PacketBuffer // guarded by mu
	refused uint64                // guarded by mu

	// Owned by the loop.
	batch []*stack.PacketBuffer // taken from queue, batch[sent:] still to go
	sent  int
	cut   cutter                // batch[sent-1], as far as it is not sent
	cuts  [2]*tcpip.StatCounter // the stack's counts of segments and packets, which see one for all frames of a cut
	run   run                   // received, not handed over yet
	held  uint64                // packets that had to wait for the link
	peak  uint64
}

var (
	_ stack.LinkEndpoint = (*Endpoint)(nil)
	_ stack.GSOEndpoint  = (*Endpoint)(nil)

	_ stack.QueueingDiscipline = (*Endpoint)(nil)
)

// NewEndpoint returns the endpoint of a port with the given hardware address
// and MTU.
func NewEndpoint(mac [6]byte, mtu int, wake func()) *Endpoint {
	return &Endpoint{mac: tcpip.LinkAddress(mac[:]), mtu: uint32(mtu), wake: wake,
		cuts: [2]*tcpip.StatCounter{new(tcpip.StatCounter), new(tcpip.StatCounter)}}
}

// WritePacket implements stack.QueueingDiscipline: the stack's own would make
// a list of each packet, for WritePackets. It takes its own reference.
func (e *Endpoint) WritePacket(p *stack.PacketBuffer) tcpip.Error {
	switch {
	case e.flows.sending(e, p):
	case e.carryFIN(p):
		// The stack counts p. The wake-up is for the other, and given.
		e.cuts[0].Decrement()
		e.cuts[1].Decrement()
		return nil
	case !e.enqueue(p.IncRef()):
		return &tcpip.ErrNoBufferSpace{}
	}
	e.wake()
	return nil
}

// finReach is how many of the packets that wait last are looked at by carryFIN.
const finReach = 4

// carryFIN has the data before it, if that still waits, carry a FIN: the stack
// gives each FIN a segment of its own. Here and at the peer it is a frame less,
// and mostly one less for its acknowledgement. The stack sends them again one by
// one if they are lost.
func (e *Endpoint) carryFIN(p *stack.PacketBuffer) bool {
	fin := header.TCP(p.TransportHeader().Slice())
	const flags = header.TCPFlagFin | header.TCPFlagAck
	if p.TransportProtocolNumber != header.TCPProtocolNumber || len(fin) < tcpLen || fin.Flags()&^header.TCPFlagPsh != flags ||
		p.Data().Size() != 0 {
		return false
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, q := range e.queue[max(0, len(e.queue)-finReach):] {
		h := header.TCP(q.TransportHeader().Slice())
		if q.TransportProtocolNumber == header.TCPProtocolNumber && len(h) >= tcpLen && q.GSOOptions.NeedsCsum && // which comes later
			q.Data().Size() > 0 && h.SequenceNumber()+uint32(q.Data().Size()) == fin.SequenceNumber() &&
			h.SourcePort() == fin.SourcePort() && h.DestinationPort() == fin.DestinationPort() &&
			h.AckNumber() == fin.AckNumber() && h.Flags()&^header.TCPFlagPsh == header.TCPFlagAck &&
			q.EgressRoute.LocalAddress == p.EgressRoute.LocalAddress && q.EgressRoute.RemoteAddress == p.EgressRoute.RemoteAddress {
			h.SetFlags(uint8(flags | header.TCPFlagPsh))
			return true
		}
	}
	return false
}

// WritePackets implements stack.LinkWriter.
func (e *Endpoint) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	return writeEach(e, pkts)
}

// writeEach sends packets one by one, until one is refused.
func writeEach(d stack.QueueingDiscipline, pkts stack.PacketBufferList) (n int, err tcpip.Error) {
	for _, p := range pkts.AsSlice() {
		if err = d.WritePacket(p); err != nil {
			break
		}
		n++
	}
	if n > 0 {
		err = nil
	}
	return n, err
}

// addOwn notes an address of the port.
func (e *Endpoint) addOwn(a netip.Addr) {
	if a.Is4() {
		e.own = append(e.own, a.As4())
	}
	switch {
	case a.Is4() && !e.own4.IsValid():
		e.own4 = a
	case a.Is6() && !e.own6.IsValid():
		e.own6 = a
	}
}

// enqueue takes over a reference on p and queues it, unless too many wait.
func (e *Endpoint) enqueue(p *stack.PacketBuffer) bool {
	e.mu.Lock()
	full := len(e.queue) >= maxHeld
	if full {
		e.refused++
	} else {
		e.queue = append(e.queue, p)
	}
	e.mu.Unlock()
	if full {
		p.DecRef()
	}
	return !full
}

// Transmitter is where the loop moves packets: a link queue, or the hand-over
// to the shard that owns one.
type Transmitter interface {
	TxAlloc() []byte
	TxCommit(n int)
}

// Drain moves waiting packets to t until none is left or t is full, and
// returns how many frames it moved. Called by the loop only.
func (e *Endpoint) Drain(t Transmitter) (frames int) {
	for {
		if !e.cut.busy() {
			if e.sent == len(e.batch) && !e.refill() {
				return frames
			}
			e.cut.load(e.batch[e.sent])
			e.batch[e.sent] = nil
			e.sent++
			if more := e.cut.frames() - 1; more > 0 {
				e.cuts[0].IncrementBy(uint64(more))
				e.cuts[1].IncrementBy(uint64(more))
			}
		}
		for e.cut.busy() {
			f := t.TxAlloc()
			if f == nil {
				waiting := uint64(len(e.batch)-e.sent) + 1
				e.held += waiting
				e.peak = max(e.peak, waiting)
				return frames
			}
			t.TxCommit(e.cut.frame(f))
			frames++
		}
	}
}

func (e *Endpoint) refill() bool {
	e.batch, e.sent = e.batch[:0], 0
	e.mu.Lock()
	e.batch, e.queue = e.queue, e.batch
	e.mu.Unlock()
	return len(e.batch) > 0
}

// Waiting tells whether Drain has something to do. Called by the loop only.
func (e *Endpoint) Waiting() bool {
	if e.cut.busy() || e.sent < len(e.batch) {
		return true
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.queue) > 0
}

// Held returns how many times packets waited for the link, the most at once,
// and how many were refused. Called by the loop only.
func (e *Endpoint) Held() (waits, peak, refused uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.held, e.peak, e.refused
}

// Deliver hands received Ethernet frames to the stack. The bytes are copied.
// Called by the loop only.
func (e *Endpoint) Deliver(frames ...[]byte) {
	for _, f := range frames {
		e.receive(f)
	}
	e.endRun()
}

// endRun hands over what was taken together.
func (e *Endpoint) endRun() { e.spared(e.run.end(e.nic)) }

// spared counts segments that the stack does not see.
func (e *Endpoint) spared(n int) {
	if n > 0 {
		e.stack.Stats().TCP.ValidSegmentsReceived.IncrementBy(uint64(n))
		e.stack.merged.IncrementBy(uint64(n))
	}
}

func (e *Endpoint) receive(f []byte) {
	if len(f) < header.EthernetMinimumSize {
		return
	}
	d := e.attached.Load()
	if d == nil {
		return
	}
	eth := header.Ethernet(f)
	if g, ok := parse(f); ok && string(f[:6]) == string(e.mac) && e.short(&g) {
		return
	}
	e.endRun() // nothing of its connection may overtake it
	dst := eth.DestinationAddress()
	kind := tcpip.PacketHost
	switch {
	case dst == e.mac:
		if e.stack.foreign.Stack != nil && e.stack.offer(f, e.nic) {
			return
		}
	case dst == header.EthernetBroadcastAddress:
		kind = tcpip.PacketBroadcast
	case header.IsMulticastEthernetAddress(dst):
		kind = tcpip.PacketMulticast
	default:
		return // a promiscuous device: not ours
	}
	deliver(*d, f, kind)
}

// short hands a segment to whoever it is for, if it can be told without the IP
// layer.
func (e *Endpoint) short(g *inbound) (taken bool) {
	if fl := e.flows.lookup(g); fl != nil {
		e.spared(e.run.add(fl, g, e.nic))
		return true
	}
	e.endRun() // nothing of its connection may overtake it
	return e.flows.waiting(e, g) || e.early(g)
}

// early hands a segment to an endpoint that the loop does not know yet, or to the
// listener that will make one. The stack finds it as it would by the long way,
// whose other checks are of addresses.
func (e *Endpoint) early(g *inbound) bool {
	s := e.stack
	if s.queuer == nil || s.foreign.Stack != nil || !slices.Contains(e.own, g.key.local) || s.oddSource(g.key.peer) {
		return false
	}
	ep, ok := s.FindTransportEndpoint(header.IPv4ProtocolNumber, header.TCPProtocolNumber, g.id(), e.nic).(*tcp.Endpoint)
	if ok {
		g.queue(s.queuer, ep, e.nic)
	}
	return ok
}

// oddSource tells whether a packet from an address takes a closer look.
func (s *Stack) oddSource(a [4]byte) bool {
	addr := netip.AddrFrom4(a)
	return a[0] == 0 || a[0] == 127 || a[0] >= 224 || s.local[addr] || s.broadcast[addr]
}

// deliver hands a copy of a frame to a stack.
func deliver(d stack.NetworkDispatcher, f []byte, kind tcpip.PacketType) {
	p := stack.NewPacketBuffer(stack.PacketBufferOptions{
		Payload: buffer.MakeWithView(buffer.NewViewWithData(f)),
	})
	p.LinkHeader().Consume(header.EthernetMinimumSize)
	p.PktType = kind
	d.DeliverNetworkPacket(header.Ethernet(f).Type(), p)
	p.DecRef()
}

// AddHeader implements stack.LinkEndpoint.
func (e *Endpoint) AddHeader(p *stack.PacketBuffer) {
	src := p.EgressRoute.LocalLinkAddress
	if src == "" {
		src = e.mac
	}
	header.Ethernet(p.LinkHeader().Push(header.EthernetMinimumSize)).Encode(&header.EthernetFields{
		SrcAddr: src, DstAddr: p.EgressRoute.RemoteLinkAddress, Type: p.NetworkProtocolNumber,
	})
}

// ParseHeader implements stack.LinkEndpoint.
func (*Endpoint) ParseHeader(p *stack.PacketBuffer) bool {
	_, ok := p.LinkHeader().Consume(header.EthernetMinimumSize)
	return ok
}

// GSOMaxSize implements stack.GSOEndpoint.
func (*Endpoint) GSOMaxSize() uint32 { return stack.GVisorGSOMaxSize }

// SupportedGSO implements stack.GSOEndpoint: to the stack this is a card that
// segments and makes TCP's checksum. The cutter is.
func (*Endpoint) SupportedGSO() stack.SupportedGSO { return stack.HostGSOSupported }

// MTU implements stack.LinkEndpoint.
func (e *Endpoint) MTU() uint32 { return e.mtu }

// SetMTU implements stack.LinkEndpoint; a device's MTU is fixed.
func (*Endpoint) SetMTU(uint32) {}

// MaxHeaderLength implements stack.LinkEndpoint.
func (*Endpoint) MaxHeaderLength() uint16 { return header.EthernetMinimumSize }

// LinkAddress implements stack.LinkEndpoint.
func (e *Endpoint) LinkAddress() tcpip.LinkAddress { return e.mac }

// SetLinkAddress implements stack.LinkEndpoint; a device's address is fixed.
func (*Endpoint) SetLinkAddress(tcpip.LinkAddress) {}

// Capabilities implements stack.LinkEndpoint. Checksums are made and checked
// in software, since neither AF_XDP nor AF_PACKET tells what a card verified.
func (*Endpoint) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityResolutionRequired
}

// Attach implements stack.LinkEndpoint.
func (e *Endpoint) Attach(d stack.NetworkDispatcher) {
	if d == nil {
		e.attached.Store(nil)
		return
	}
	e.attached.Store(&d)
}

// IsAttached implements stack.LinkEndpoint.
func (e *Endpoint) IsAttached() bool { return e.attached.Load() != nil }

// Wait implements stack.LinkEndpoint; there are no goroutines to wait for.
func (*Endpoint) Wait() {}

// ARPHardwareType implements stack.LinkEndpoint.
func (*Endpoint) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareEther }

// Close implements stack.LinkEndpoint.
func (*Endpoint) Close() {}

// SetOnCloseAction implements stack.LinkEndpoint.
func (*Endpoint) SetOnCloseAction(func()) {}

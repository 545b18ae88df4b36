// SPDX-License-Identifier: Apache-2.0

package netstack

import (
	"encoding/binary"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// What an established connection sends differs from what it sent before in
// nothing below TCP but its length. The IP and link layers make it anew each
// time: rules of a firewall that there is none of, the neighbour, two headers
// field by field, counters of everything; as much again as TCP itself does. So a
// flow keeps the headers of what it sent last (learn), and segments get them as
// they leave TCP (outlet). Every learnDelay one goes the long way, and so do all
// that are in any way unusual: a neighbour whose hardware address changes is
// noticed, and one that is asked for is kept alive, as ever.

// learnDelay is how long headers are good for.
const learnDelay = int64(100 * time.Millisecond)

// pattern is what a flow's segments have before the TCP header.
type pattern struct {
	port  *Endpoint // nil: not known
	until int64     // on the loop's clock, which stands still while the loop sleeps
	route stack.RouteInfo
	bytes [ethLen + ipv4Len]byte // without the length and the checksum
	sum   uint16                 // of the IP header in bytes
}

// KUID and KGID make a flow a tcpip.PacketOwner: an endpoint's packets say whose
// they are, and nothing has to be looked up.
func (f *flow) KUID() uint32 { return 0 }
func (f *flow) KGID() uint32 { return 0 }

// learn takes the headers of a packet of the flow's that has gone the long way,
// unless they are unusual. flows.mu is held.
func (f *flow) learn(e *Endpoint, p *stack.PacketBuffer, ip []byte, now int64) {
	link := p.LinkHeader().Slice()
	if f.left || p.Owner != tcpip.PacketOwner(f) || len(link) != ethLen || len(ip) != ipv4Len ||
		binary.BigEndian.Uint32(ip[4:]) != header.IPv4FlagDontFragment<<13 {
		f.head.port = nil
		return
	}
	h := &f.head
	h.port, h.until, h.route = e, now+learnDelay, p.EgressRoute
	copy(h.bytes[:], link)
	copy(h.bytes[ethLen:], ip)
	own := header.IPv4(h.bytes[ethLen:])
	own.SetTotalLength(0)
	own.SetChecksum(0)
	h.sum = own.CalculateChecksum()
}

// fits tells whether the headers are those of p, whose TCP header is th.
func (h *pattern) fits(r *stack.Route, params *stack.NetworkHeaderParams, p *stack.PacketBuffer, th []byte, now int64) bool {
	ip := h.bytes[ethLen:]
	size := p.Size()
	return h.port != nil && now < h.until && header.TCPFlags(th[header.TCPFlagsOffset])&^header.TCPFlagPsh == header.TCPFlagAck &&
		params.DF && params.TTL == ip[8] && params.TOS == ip[1] && params.ExperimentOptionValue == 0 && r.Loop() == stack.PacketOut &&
		size <= maxRun-ipv4Len && (p.GSOOptions.Type != stack.GSONone || size <= int(h.port.mtu)-ipv4Len)
}

// put gives p the headers.
func (h *pattern) put(p *stack.PacketBuffer) {
	ip := p.NetworkHeader().Push(ipv4Len)
	copy(ip, h.bytes[ethLen:])
	size := uint16(p.Size())
	binary.BigEndian.PutUint16(ip[2:], size)
	binary.BigEndian.PutUint16(ip[10:], ^checksum.Combine(h.sum, size))
	copy(p.LinkHeader().Push(ethLen), h.bytes[:])
	p.NetworkProtocolNumber, p.PktType, p.EgressRoute = header.IPv4ProtocolNumber, tcpip.PacketOutgoing, h.route
}

// whole gives p the headers if it was held back without.
func (h *pattern) whole(p *stack.PacketBuffer) *stack.PacketBuffer {
	if p.NetworkProtocolNumber == 0 {
		h.put(p)
	}
	return p
}

// short sends a segment of fl's the short way, or holds it back. It reports false
// if it has to go the long way.
func (t *flows) short(fl *flow, r *stack.Route, params *stack.NetworkHeaderParams, p *stack.PacketBuffer) (bool, tcpip.Error) {
	th := p.TransportHeader().Slice()
	t.mu.Lock()
	if now := t.now.Load(); fl.left || !fl.head.fits(r, params, p, th, now) {
		t.mu.Unlock()
		return false, nil
	}
	e, hold := fl.head.port, t.holds(fl, p, th)
	if !hold {
		fl.head.put(p)
	}
	t.mu.Unlock()
	if hold {
		e.wake() // the loop has to learn when it must go
		return true, nil
	}
	if !e.enqueue(p.IncRef()) {
		stats := e.stack.Stats()
		stats.NICs.TxPacketsDroppedNoBufferSpace.Increment()
		stats.IP.OutgoingPacketErrors.Increment()
		return true, &tcpip.ErrNoBufferSpace{}
	}
	e.cuts[1].Increment()
	e.wake()
	return true, nil
}

// ipv4Protocol and ipv4Endpoint are all that the stack may ask of gVisor's IPv4.
type ipv4Protocol interface {
	stack.NetworkProtocol
	stack.MulticastForwardingNetworkProtocol
	stack.RejectIPv4WithHandler
}

type ipv4Endpoint interface {
	stack.NetworkEndpoint
	stack.LinkResolvableNetworkEndpoint
	stack.MulticastForwardingNetworkEndpoint
	stack.GroupAddressableEndpoint
	stack.AddressableEndpoint
	ipv4.IGMPEndpoint
}

// outlets is gVisor's IPv4 with an outlet at each port.
type outlets struct {
	ipv4Protocol
	flows *flows
}

func newOutlets(f *flows) stack.NetworkProtocolFactory {
	return func(s *stack.Stack) stack.NetworkProtocol {
		return &outlets{ipv4.NewProtocol(s).(ipv4Protocol), f}
	}
}

// NewEndpoint implements stack.NetworkProtocol.
func (o *outlets) NewEndpoint(nic stack.NetworkInterface, d stack.TransportDispatcher) stack.NetworkEndpoint {
	return &outlet{o.ipv4Protocol.NewEndpoint(nic, d).(ipv4Endpoint), o.flows}
}

// outlet is IPv4 on one port.
type outlet struct {
	ipv4Endpoint
	flows *flows
}

// WritePacket implements stack.NetworkEndpoint.
func (o *outlet) WritePacket(r *stack.Route, params stack.NetworkHeaderParams, p *stack.PacketBuffer) tcpip.Error {
	if fl, ok := p.Owner.(*flow); ok {
		if done, err := o.flows.short(fl, r, &params, p); done {
			return err
		}
	}
	return o.ipv4Endpoint.WritePacket(r, params, p)
}

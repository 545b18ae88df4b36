// SPDX-License-Identifier: Apache-2.0

package netstack

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// foreign is where sockets live whose addresses are not the stack's own: those
// of a proxy that speaks to its servers from its clients' addresses, or takes
// connections to any destination (IP_TRANSPARENT), or listens on an address to
// come (IP_FREEBIND).
//
// It is a gVisor stack besides the first one, on the same ports, made at the
// first need. In one stack an address is local or it is not; but a client is
// both when the proxy borrows its address while the client speaks to the proxy.
// This stack takes every address for its own and owns none: it answers nobody,
// and gets only the frames that are for one of its sockets. What belongs to
// nobody is dropped without an answer, as by a host that forwards nothing.
//
// Owned by the loop.
type foreign struct {
	*Stack
	links       []*foreignLink // by port
	transparent map[stack.TransportEndpoint]struct{}
}

// foreignLink is a port as the foreign stack sees it: it sends by the port's
// own endpoint.
type foreignLink struct {
	*Endpoint
	attached atomic.Pointer[stack.NetworkDispatcher]
}

// Attach implements stack.LinkEndpoint.
func (l *foreignLink) Attach(d stack.NetworkDispatcher) {
	if d == nil {
		l.attached.Store(nil)
		return
	}
	l.attached.Store(&d)
}

// IsAttached implements stack.LinkEndpoint.
func (l *foreignLink) IsAttached() bool { return l.attached.Load() != nil }

// Foreign returns the stack for sockets at foreign addresses.
func (s *Stack) Foreign() (*Stack, error) {
	if s.foreign.Stack != nil {
		return s.foreign.Stack, nil
	}
	f := &Stack{Stack: newStack(s.clock, s.flows, false), clock: s.clock, local: s.local, flows: s.flows, ports: s.ports}
	f.queuer, _ = f.TransportProtocolInstance(tcp.ProtocolNumber).(queuer)
	if err := f.tune(s.options.TCP.withDefaults()); err != nil {
		f.Close()
		return nil, err
	}
	var links []*foreignLink
	for i, p := range s.options.Ports {
		l := &foreignLink{Endpoint: p.Endpoint}
		if err := f.addForeignPort(tcpip.NICID(i+1), p, l); err != nil {
			f.Close()
			return nil, err
		}
		links = append(links, l)
	}
	s.foreign = foreign{f, links, make(map[stack.TransportEndpoint]struct{})}
	return f, nil
}

func (s *Stack) addForeignPort(id tcpip.NICID, p Port, l *foreignLink) error {
	err := s.CreateNICWithOptions(id, l, stack.NICOptions{Name: p.Name, QDisc: l})
	if err == nil {
		err = s.SetSpoofing(id, true)
	}
	if err == nil {
		err = s.SetPromiscuousMode(id, true)
	}
	if err != nil {
		return fmt.Errorf("open network port %s to foreign addresses: %s", p.Name, err)
	}
	s.addRoutes(id, p)
	return nil
}

// SetTransparent lets an endpoint of the foreign stack listen, or no longer.
func (s *Stack) SetTransparent(ep tcpip.Endpoint, on bool) {
	t, ok := ep.(stack.TransportEndpoint)
	switch {
	case !ok || s.foreign.Stack == nil:
	case on:
		s.foreign.transparent[t] = struct{}{}
	default:
		delete(s.foreign.transparent, t)
	}
}

// LocalTowards converts a foreign address to bind to before a connection to
// peer; it names the port that the route to peer leaves by. Without a peer it
// is the first port.
func (s *Stack) LocalTowards(ap netip.AddrPort, peer netip.Addr) tcpip.FullAddress {
	f := Full(ap)
	if f.Addr.Len() == 0 {
		return f
	}
	f.NIC = 1
	if peer.IsValid() {
		if r, err := s.FindRoute(0, f.Addr, Address(peer), NetProto(peer), false); err == nil {
			f.NIC = r.NICID()
			r.Release()
		}
	}
	return f
}

// offer gives a received frame to the foreign stack if it is for it, and
// reports whether it is for nobody else.
func (s *Stack) offer(f []byte, nic tcpip.NICID) (taken bool) {
	b := f[ethLen:]
	switch binary.BigEndian.Uint16(f[12:]) {
	case uint16(header.ARPProtocolNumber):
		if len(b) < header.ARPSize || header.ARP(b).Op() != header.ARPReply {
			return false
		}
	case uint16(header.IPv4ProtocolNumber):
		if len(b) < ipv4Len || !s.wants4(b, nic) {
			return false
		}
		taken = true
	case uint16(header.IPv6ProtocolNumber):
		switch {
		case len(b) < header.IPv6MinimumSize+8:
			return false
		case b[6] == uint8(header.ICMPv6ProtocolNumber) &&
			header.ICMPv6(b[header.IPv6MinimumSize:]).Type() == header.ICMPv6NeighborAdvert:
		case s.wants6(b, nic):
			taken = true
		default:
			return false
		}
	default:
		return false
	}
	if d := s.foreign.links[nic-1].attached.Load(); d != nil {
		deliver(*d, f, tcpip.PacketHost)
	}
	return taken
}

// wants4 tells whether a packet is for a foreign address of which a socket
// here is the owner.
func (s *Stack) wants4(b []byte, nic tcpip.NICID) bool {
	if !s.isForeign(netip.AddrFrom4([4]byte(b[16:20]))) {
		return false
	}
	hdr := int(b[0]&15) * 4
	if hdr < ipv4Len || len(b) < hdr+8 || binary.BigEndian.Uint16(b[6:])&0x3fff != 0 {
		return false // a fragment does not say whose it is
	}
	t := b[hdr:]
	if b[9] != uint8(header.ICMPv4ProtocolNumber) {
		return s.hasOwner(b[9], b[16:20], b[12:16], t[2:4], t[:2], nic)
	}
	switch header.ICMPv4(t).Type() {
	case header.ICMPv4DstUnreachable, header.ICMPv4TimeExceeded, header.ICMPv4ParamProblem:
	default:
		return false
	}
	// An error is for the flow that it quotes, which went the other way.
	q := t[8:]
	if len(q) < ipv4Len {
		return false
	}
	hdr = int(q[0]&15) * 4
	return hdr >= ipv4Len && len(q) >= hdr+8 && [4]byte(q[12:16]) == [4]byte(b[16:20]) &&
		s.hasOwner(q[9], q[12:16], q[16:20], q[hdr:hdr+2], q[hdr+2:hdr+4], nic)
}

func (s *Stack) wants6(b []byte, nic tcpip.NICID) bool {
	const hdr = header.IPv6MinimumSize
	if !s.isForeign(netip.AddrFrom16([16]byte(b[24:40]))) {
		return false
	}
	t := b[hdr:]
	if b[6] != uint8(header.ICMPv6ProtocolNumber) {
		return s.hasOwner(b[6], b[24:40], b[8:24], t[2:4], t[:2], nic)
	}
	q := t[8:]
	return t[0] < 128 && len(q) >= hdr+8 && [16]byte(q[8:24]) == [16]byte(b[24:40]) &&
		s.hasOwner(q[6], q[8:24], q[24:40], q[hdr:hdr+2], q[hdr+2:hdr+4], nic)
}

func (s *Stack) isForeign(a netip.Addr) bool {
	return !s.IsLocal(a) && !a.IsMulticast() && !s.broadcast[a]
}

// hasOwner tells whether a flow at a foreign address has a socket here.
func (s *Stack) hasOwner(transport byte, local, peer, localPort, peerPort []byte, nic tcpip.NICID) bool {
	proto := header.IPv4ProtocolNumber
	if len(local) == 16 {
		proto = header.IPv6ProtocolNumber
	}
	ep := s.foreign.FindTransportEndpoint(proto, tcpip.TransportProtocolNumber(transport), stack.TransportEndpointID{
		LocalPort: binary.BigEndian.Uint16(localPort), LocalAddress: tcpip.AddrFromSlice(local),
		RemotePort: binary.BigEndian.Uint16(peerPort), RemoteAddress: tcpip.AddrFromSlice(peer),
	}, nic)
	if ep == nil {
		return false
	}
	if e, ok := ep.(*tcp.Endpoint); ok && e.EndpointState() != tcp.StateListen {
		return true // a connection, found by all four
	}
	_, ok := s.foreign.transparent[ep]
	return ok
}

// askOwn makes the search for a neighbour's hardware address ask in the port's
// own name. gVisor asks in that of the packet that waits: who hears it would
// take this port for the owner of the client's address.
func (e *Endpoint) askOwn(p *stack.PacketBuffer) {
	switch p.NetworkProtocolNumber {
	case header.ARPProtocolNumber:
		h := header.ARP(p.NetworkHeader().Slice())
		if e.own4.IsValid() && h.IsValid() && h.Op() == header.ARPRequest {
			a := e.own4.As4()
			copy(h.ProtocolAddressSender(), a[:])
		}
	case header.IPv6ProtocolNumber:
		ip := header.IPv6(p.NetworkHeader().Slice())
		if !e.own6.IsValid() || len(ip) < header.IPv6MinimumSize || ip.NextHeader() != uint8(header.ICMPv6ProtocolNumber) {
			return
		}
		b, ok := p.Data().PullUp(p.Data().Size())
		icmp := header.ICMPv6(b)
		if !ok || len(b) < header.ICMPv6NeighborSolicitMinimumSize || icmp.Type() != header.ICMPv6NeighborSolicit {
			return
		}
		ip.SetSourceAddress(Address(e.own6))
		icmp.SetChecksum(0)
		icmp.SetChecksum(header.ICMPv6Checksum(header.ICMPv6ChecksumParams{
			Header: icmp, Src: ip.SourceAddress(), Dst: ip.DestinationAddress(),
		}))
	}
}

// WritePacket implements stack.QueueingDiscipline.
func (l *foreignLink) WritePacket(p *stack.PacketBuffer) tcpip.Error {
	l.askOwn(p)
	return l.Endpoint.WritePacket(p)
}

// WritePackets implements stack.LinkWriter.
func (l *foreignLink) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	return writeEach(l, pkts)
}

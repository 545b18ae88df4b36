// SPDX-License-Identifier: Apache-2.0

package netstack

import (
	"net/netip"
	"sync"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/ports"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

// DefaultUDPBuffer bounds what waits in a socket to be read: Linux's default
// of net.core.rmem_default. Each datagram counts as its data and udpOverhead.
const (
	DefaultUDPBuffer = 212992
	udpOverhead      = 256

	// compactAt is how many entries of the queue are used up before the rest
	// moves to its front.
	compactAt = 64
)

// UDP is a datagram socket of the stack. gVisor's own cannot choose a source
// address for IPv4, sets no traffic class for a single datagram, and bounds its
// queue by data alone, which empty datagrams have none of; so this one uses
// the stack's routes, ports and demultiplexer directly.
//
// Datagrams wait in a queue that the stack appends to, from whatever goroutine
// it runs in, and the shard's loop takes from. All other methods are called by
// the loop only.
type UDP struct {
	s      *Stack
	v6     bool
	v6only bool
	flags  ports.Flags
	notify func()

	protos   []tcpip.NetworkProtocolNumber
	reserved ports.Reservation // of the port; Port 0: none
	id       stack.TransportEndpointID
	port     uint16
	peer     netip.AddrPort // connected to
	way      way            // last used

	out4, out6 marks
	mtudisc    int

	mu      sync.Mutex
	closed  bool        // guarded by mu
	queue   []*datagram // guarded by mu; head is the index of the oldest
	head    int         // guarded by mu
	bytes   int         // guarded by mu
	limit   int         // guarded by mu
	dropped uint64      // guarded by mu
	err     tcpip.Error // guarded by mu
	linked  bool        // guarded by mu: err and datagrams count for peer only
}

// marks are what a family's datagrams are sent with; 0 is the default.
type marks struct{ tos, ttl uint8 }

// datagram is one that waits to be read.
type datagram struct {
	pkt   *stack.PacketBuffer
	from  netip.AddrPort
	to    netip.AddrPort
	tos   uint8
	ttl   uint8
	nic   tcpip.NICID
	bytes int
}

// way is a route and what it was looked up for.
type way struct {
	dst, src netip.Addr
	route    *stack.Route
}

// Received describes a datagram.
type Received struct {
	Len      int
	From, To netip.AddrPort
	TOS, TTL uint8
	NIC      uint32
}

// NewUDP returns an unbound socket. notify is called, from any goroutine, when
// a datagram or an error has come.
func (s *Stack) NewUDP(v6 bool, notify func()) *UDP {
	return &UDP{s: s, v6: v6, notify: notify, limit: DefaultUDPBuffer, mtudisc: pmtudiscWant}
}

// Reuse sets SO_REUSEADDR, SO_REUSEPORT and IPV6_V6ONLY, before Bind.
func (u *UDP) Reuse(addr, port, v6only bool) {
	u.flags = ports.Flags{MostRecent: addr, LoadBalanced: port}
	u.v6only = v6only
}

// Bind reserves an address; port 0 chooses one. A wildcard of IPv6 covers IPv4
// unless IPV6_V6ONLY says otherwise.
func (u *UDP) Bind(local netip.AddrPort) tcpip.Error {
	if u.port != 0 {
		return &tcpip.ErrInvalidEndpointState{}
	}
	f := Full(local)
	proto := NetProto(local.Addr())
	if f.Addr.Len() != 0 && u.s.CheckLocalAddress(0, proto, f.Addr) == 0 {
		return &tcpip.ErrBadLocalAddress{}
	}
	protos := []tcpip.NetworkProtocolNumber{proto}
	if proto == header.IPv6ProtocolNumber && f.Addr.Len() == 0 && !u.v6only {
		protos = append(protos, header.IPv4ProtocolNumber)
	}
	return u.reserve(protos, stack.TransportEndpointID{LocalAddress: f.Addr, LocalPort: f.Port})
}

func (u *UDP) reserve(protos []tcpip.NetworkProtocolNumber, id stack.TransportEndpointID) tcpip.Error {
	r := ports.Reservation{
		Networks: protos, Transport: udp.ProtocolNumber, Addr: id.LocalAddress, Port: id.LocalPort, Flags: u.flags,
	}
	port, err := u.s.ReservePort(u.s.SecureRNG(), r, nil)
	if err != nil {
		return err
	}
	r.Port, id.LocalPort = port, port
	if err := u.s.RegisterTransportEndpoint(protos, udp.ProtocolNumber, id, u, u.flags, 0); err != nil {
		u.s.ReleasePort(r)
		return err
	}
	u.reserved, u.protos, u.id, u.port = r, protos, id, port
	return nil
}

// Connect makes peer the only source and the default destination, and binds
// the socket if it is not yet.
func (u *UDP) Connect(peer netip.AddrPort) tcpip.Error {
	if u.v6only && peer.Addr().Is4() {
		return &tcpip.ErrNetworkUnreachable{}
	}
	var src tcpip.Address
	if u.reserved.Port != 0 {
		src = u.reserved.Addr
	}
	proto := NetProto(peer.Addr())
	r, err := u.s.FindRoute(0, src, Address(peer.Addr()), proto, false)
	if err != nil {
		return err
	}
	id := stack.TransportEndpointID{
		LocalAddress: r.LocalAddress(), LocalPort: u.port, RemoteAddress: r.RemoteAddress(), RemotePort: peer.Port(),
	}
	protos := []tcpip.NetworkProtocolNumber{proto}
	r.Release()
	if u.port == 0 {
		if err := u.reserve(protos, id); err != nil {
			return err
		}
	} else if err := u.move(protos, id); err != nil {
		return err
	}
	u.peer = peer
	u.link(true)
	return nil
}

// Disconnect undoes Connect; the port stays.
func (u *UDP) Disconnect() tcpip.Error {
	if !u.peer.IsValid() {
		return nil
	}
	err := u.move(u.reserved.Networks, stack.TransportEndpointID{LocalAddress: u.reserved.Addr, LocalPort: u.port})
	if err == nil {
		u.peer = netip.AddrPort{}
		u.link(false)
	}
	return err
}

func (u *UDP) link(on bool) {
	u.mu.Lock()
	u.linked, u.err = on, nil
	u.mu.Unlock()
}

// move registers the socket under another name. The former one goes first, so
// that the same name may be taken again, and comes back if the new one fails.
func (u *UDP) move(protos []tcpip.NetworkProtocolNumber, id stack.TransportEndpointID) tcpip.Error {
	u.s.UnregisterTransportEndpoint(u.protos, udp.ProtocolNumber, u.id, u, u.flags, 0)
	err := u.s.RegisterTransportEndpoint(protos, udp.ProtocolNumber, id, u, u.flags, 0)
	if err != nil {
		if back := u.s.RegisterTransportEndpoint(u.protos, udp.ProtocolNumber, u.id, u, u.flags, 0); back != nil {
			u.protos = nil
		}
		return err
	}
	u.protos, u.id = protos, id
	return nil
}

// Local returns the address that the socket is bound to.
func (u *UDP) Local() netip.AddrPort {
	v6 := u.v6
	if len(u.protos) > 0 {
		v6 = u.protos[0] == header.IPv6ProtocolNumber
	}
	return AddrPort(tcpip.FullAddress{Addr: u.id.LocalAddress, Port: u.port}, v6)
}

// Peer returns the address that the socket is connected to.
func (u *UDP) Peer() netip.AddrPort { return u.peer }

// MTU is that of the way to the peer, or the least of all ports.
func (u *UDP) MTU() int {
	if u.peer.IsValid() {
		if r, err := u.routeTo(u.peer.Addr(), netip.Addr{}); err == nil {
			return int(r.MTU()) + ipHeader(r)
		}
	}
	mtu := 65535
	for _, p := range u.s.ports {
		mtu = min(mtu, int(p.mtu))
	}
	return mtu
}

// Close gives back the port and drops what waits.
func (u *UDP) Close() {
	u.mu.Lock()
	u.closed = true
	for _, d := range u.queue[u.head:] {
		d.pkt.DecRef()
	}
	u.queue, u.head, u.bytes = nil, 0, 0
	u.mu.Unlock()
	if u.port != 0 {
		u.s.UnregisterTransportEndpoint(u.protos, udp.ProtocolNumber, u.id, u, u.flags, 0)
		u.s.ReleasePort(u.reserved)
		u.port = 0
	}
	u.forget()
}

func ipHeader(r *stack.Route) int {
	if r.NetProto() == header.IPv6ProtocolNumber {
		return header.IPv6MinimumSize
	}
	return header.IPv4MinimumSize
}

func (u *UDP) forget() {
	if u.way.route != nil {
		u.way.route.Release()
	}
	u.way = way{}
}

// routeTo finds a route, mostly the one that was used last.
func (u *UDP) routeTo(dst, src netip.Addr) (*stack.Route, tcpip.Error) {
	if u.way.route != nil && u.way.dst == dst && u.way.src == src {
		return u.way.route, nil
	}
	from := u.id.LocalAddress
	proto := NetProto(dst)
	if src.IsValid() {
		from = Address(src)
		if u.s.CheckLocalAddress(0, proto, from) == 0 {
			return nil, &tcpip.ErrBadLocalAddress{}
		}
	}
	r, err := u.s.FindRoute(0, from, Address(dst), proto, false)
	if err != nil {
		return nil, err
	}
	u.forget()
	u.way = way{dst, src, r}
	return r, nil
}

// CheckSource says what Linux does of a source address for a datagram.
func (u *UDP) CheckSource(a netip.Addr) tcpip.Error {
	switch {
	case !a.IsValid():
		return &tcpip.ErrInvalidOptionValue{}
	case u.s.CheckLocalAddress(0, NetProto(a), Address(a)) != 0:
		return nil
	case a.Is6():
		return &tcpip.ErrInvalidOptionValue{}
	}
	return &tcpip.ErrNetworkUnreachable{}
}

// Sent describes a datagram to be sent. An invalid To is the peer connected
// to, an invalid From leaves the choice to the stack; TOS below 0 and TTL 0
// are the socket's own.
type Sent struct {
	To   netip.AddrPort
	From netip.Addr
	TOS  int
	TTL  uint8
}

// Send sends one datagram; b is copied.
func (u *UDP) Send(b []byte, o Sent) tcpip.Error {
	to := o.To
	if !to.IsValid() {
		if to = u.peer; !to.IsValid() {
			return &tcpip.ErrDestinationRequired{}
		}
	}
	switch {
	case to.Port() == 0:
		return &tcpip.ErrInvalidEndpointState{}
	case to.Addr().Is6() && !u.v6:
		return &tcpip.ErrAddressFamilyNotSupported{}
	case u.port == 0:
		return &tcpip.ErrInvalidEndpointState{}
	}
	r, err := u.routeTo(to.Addr(), o.From)
	if err != nil {
		return err
	}
	if r.IsOutboundBroadcast() {
		return &tcpip.ErrBroadcastDisabled{}
	}
	longest := header.UDPMaximumPacketSize - header.UDPMinimumSize
	if to.Addr().Is4() {
		longest -= header.IPv4MinimumSize
	}
	// The stack has no path MTU discovery: "want", the default of Linux, would
	// lose what is too long for the path. So only who insists gets DF.
	df := u.mtudisc == pmtudiscDo || u.mtudisc == pmtudiscProbe
	if len(b) > longest || df && len(b)+header.UDPMinimumSize > int(r.MTU()) {
		return &tcpip.ErrMessageTooLong{}
	}
	return u.emit(r, b, to.Port(), o, df)
}

func (u *UDP) emit(r *stack.Route, b []byte, port uint16, o Sent, df bool) tcpip.Error {
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: header.UDPMinimumSize + int(r.MaxHeaderLength()),
		Payload:            buffer.MakeWithData(b),
	})
	defer pkt.DecRef()
	length := uint16(header.UDPMinimumSize + len(b))
	h := header.UDP(pkt.TransportHeader().Push(header.UDPMinimumSize))
	pkt.TransportProtocolNumber = udp.ProtocolNumber
	h.Encode(&header.UDPFields{SrcPort: u.port, DstPort: port, Length: length})
	sum := h.CalculateChecksum(checksum.Combine(
		header.PseudoHeaderChecksum(udp.ProtocolNumber, r.LocalAddress(), r.RemoteAddress(), length),
		pkt.Data().Checksum(),
	))
	if sum != 0xffff { // zero would say that there is none
		sum = ^sum
	}
	h.SetChecksum(sum)
	m := u.out4
	if r.NetProto() == header.IPv6ProtocolNumber {
		m = u.out6
	}
	tos, ttl := m.tos, m.ttl
	if o.TOS >= 0 {
		tos = uint8(o.TOS)
	}
	if o.TTL != 0 {
		ttl = o.TTL
	}
	if ttl == 0 {
		ttl = r.DefaultTTL()
	}
	st := u.s.Stats().UDP
	err := r.WritePacket(stack.NetworkHeaderParams{Protocol: udp.ProtocolNumber, TTL: ttl, TOS: tos, DF: df}, pkt)
	if err != nil {
		st.PacketSendErrors.Increment()
		return err
	}
	st.PacketsSent.Increment()
	return nil
}

// Peek returns the oldest datagram that waits.
func (u *UDP) Peek() (r Received, ok bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.head == len(u.queue) {
		return r, false
	}
	d := u.queue[u.head]
	return Received{
		Len: d.bytes - udpOverhead, From: d.from, To: d.to, TOS: d.tos, TTL: d.ttl, NIC: uint32(d.nic),
	}, true
}

// Take copies the data of the oldest datagram to b, which has room for it, and
// removes it.
func (u *UDP) Take(b []byte) {
	u.mu.Lock()
	d := u.queue[u.head]
	u.queue[u.head] = nil
	u.head++
	u.bytes -= d.bytes
	if u.head == len(u.queue) || u.head >= compactAt && u.head >= len(u.queue)/2 {
		n := copy(u.queue, u.queue[u.head:])
		clear(u.queue[n:])
		u.queue, u.head = u.queue[:n], 0
	}
	u.mu.Unlock()
	w := sink{b}
	_, _ = d.pkt.Data().ReadTo(&w, true)
	d.pkt.DecRef()
}

// Drop removes the oldest datagram unread.
func (u *UDP) Drop() {
	u.Take(nil)
	u.mu.Lock()
	u.dropped++
	u.mu.Unlock()
}

// sink fills a buffer.
type sink struct{ b []byte }

func (s *sink) Write(p []byte) (int, error) {
	s.b = s.b[copy(s.b, p):]
	return len(p), nil
}

// Queued tells how many bytes of data and how many datagrams wait, and how
// many datagrams were dropped for lack of room.
func (u *UDP) Queued() (bytes, n int, dropped uint64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	n = len(u.queue) - u.head
	return u.bytes - n*udpOverhead, n, u.dropped
}

// Err returns what has happened since the last call.
func (u *UDP) Err() tcpip.Error {
	u.mu.Lock()
	defer u.mu.Unlock()
	err := u.err
	u.err = nil
	return err
}

// HandlePacket implements stack.TransportEndpoint.
func (u *UDP) HandlePacket(id stack.TransportEndpointID, pkt *stack.PacketBuffer) {
	hdr := header.UDP(pkt.TransportHeader().Slice())
	net := pkt.Network()
	st := u.s.Stats().UDP
	length, sum := header.UDPValid(hdr, func() uint16 { return pkt.Data().Checksum() }, uint16(pkt.Data().Size()),
		pkt.NetworkProtocolNumber, net.SourceAddress(), net.DestinationAddress(), pkt.RXChecksumValidated)
	switch {
	case !length:
		st.MalformedPacketsReceived.Increment()
		return
	case !sum:
		st.ChecksumErrors.Increment()
		return
	}
	st.PacketsReceived.Increment()
	d := &datagram{
		from:  netip.AddrPortFrom(Addr(id.RemoteAddress), hdr.SourcePort()),
		to:    netip.AddrPortFrom(Addr(net.DestinationAddress()), hdr.DestinationPort()),
		nic:   pkt.NICID,
		bytes: pkt.Data().Size() + udpOverhead,
	}
	d.tos, _ = net.TOS()
	if pkt.NetworkProtocolNumber == header.IPv4ProtocolNumber {
		d.ttl = header.IPv4(pkt.NetworkHeader().Slice()).TTL()
	} else {
		d.ttl = header.IPv6(pkt.NetworkHeader().Slice()).HopLimit()
	}
	u.mu.Lock()
	full := u.closed || u.bytes >= u.limit
	if full {
		u.dropped++
	} else {
		// The packet's data are only read, through iterators of their own.
		d.pkt = pkt.IncRef()
		u.queue = append(u.queue, d)
		u.bytes += d.bytes
	}
	u.mu.Unlock()
	if full {
		st.ReceiveBufferErrors.Increment()
		return
	}
	u.notify()
}

// HandleError implements stack.TransportEndpoint: of what ICMP tells, a
// connected socket hears that nobody listens and that a datagram was too long,
// as with Linux.
func (u *UDP) HandleError(e stack.TransportError, _ *stack.PacketBuffer) {
	var err tcpip.Error
	switch e.Kind() {
	case stack.DestinationPortUnreachableTransportError, stack.DestinationProtoUnreachableTransportError:
		err = &tcpip.ErrConnectionRefused{}
	case stack.PacketTooBigTransportError:
		if u.mtudisc == pmtudiscDo {
			err = &tcpip.ErrMessageTooLong{}
		}
	}
	if err != nil {
		u.fail(err)
	}
}

// refused notes that nobody takes the datagrams.
func (u *UDP) refused() { u.fail(&tcpip.ErrConnectionRefused{}) }

// fail notes what a connected socket is told by its next call.
func (u *UDP) fail(err tcpip.Error) {
	u.mu.Lock()
	tell := u.linked && !u.closed
	if tell {
		u.err = err
	}
	u.mu.Unlock()
	if tell {
		u.notify()
	}
}

// Abort implements stack.TransportEndpoint.
func (u *UDP) Abort() { u.Close() }

// Wait implements stack.TransportEndpoint; there is nobody to wait for.
func (*UDP) Wait() {}

// SPDX-License-Identifier: Apache-2.0

package edge

import (
	"fmt"
	"net/netip"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

const (
	nicID = 1
	// socketBuffer bounds what one connection may hold in each direction; at
	// 20 ms of delay it allows 100 MB/s.
	socketBuffer = 2 << 20
)

// newStack makes the edge's network stack with its addresses. The prefixes
// are on the link; there is no router.
func newStack(p *port, prefixes []netip.Prefix) (*stack.Stack, error) {
	s := stack.New(stack.Options{
		NetworkProtocols: []stack.NetworkProtocolFactory{
			arp.NewProtocol, ipv4.NewProtocol,
			// An address must be usable at once: nobody else is on this wire.
			ipv6.NewProtocolWithOptions(ipv6.Options{DADConfigs: stack.DADConfigurations{}}),
		},
		TransportProtocols: []stack.TransportProtocolFactory{
			tcp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6,
		},
	})
	if err := tune(s); err != nil {
		s.Destroy()
		return nil, err
	}
	if err := s.CreateNIC(nicID, p); err != nil {
		s.Destroy()
		return nil, fmt.Errorf("create the edge's interface: %s", err)
	}
	var routes []tcpip.Route
	for _, prefix := range prefixes {
		if err := addAddress(s, prefix); err != nil {
			s.Destroy()
			return nil, err
		}
		subnet := tcpip.AddressWithPrefix{
			Address: tcpip.AddrFromSlice(prefix.Addr().AsSlice()), PrefixLen: prefix.Bits(),
		}.Subnet()
		routes = append(routes, tcpip.Route{Destination: subnet, NIC: nicID})
	}
	s.SetRouteTable(routes)
	return s, nil
}

func addAddress(s *stack.Stack, prefix netip.Prefix) error {
	addr := tcpip.ProtocolAddress{
		Protocol: protocolOf(prefix.Addr()),
		AddressWithPrefix: tcpip.AddressWithPrefix{
			Address: tcpip.AddrFromSlice(prefix.Addr().AsSlice()), PrefixLen: prefix.Bits(),
		},
	}
	err := s.AddProtocolAddress(nicID, addr, stack.AddressProperties{})
	if _, dup := err.(*tcpip.ErrDuplicateAddress); err != nil && !dup {
		return fmt.Errorf("add address %v to the edge: %s", prefix, err)
	}
	return nil
}

func protocolOf(a netip.Addr) tcpip.NetworkProtocolNumber {
	if a.Is4() {
		return header.IPv4ProtocolNumber
	}
	return header.IPv6ProtocolNumber
}

func tune(s *stack.Stack) error {
	sack := tcpip.TCPSACKEnabled(true)
	rcv := tcpip.TCPReceiveBufferSizeRangeOption{Min: 4096, Default: socketBuffer, Max: 2 * socketBuffer}
	snd := tcpip.TCPSendBufferSizeRangeOption{Min: 4096, Default: socketBuffer, Max: 2 * socketBuffer}
	moderate := tcpip.TCPModerateReceiveBufferOption(false)
	// One client address serves every connection, so ports must come back
	// soon: the peer is on the same wire, a stray segment does not live long.
	timeWait := tcpip.TCPTimeWaitTimeoutOption(time.Second)
	for _, opt := range []tcpip.SettableTransportProtocolOption{&sack, &rcv, &snd, &moderate, &timeWait} {
		if err := s.SetTransportProtocolOption(tcp.ProtocolNumber, opt); err != nil {
			return fmt.Errorf("set %T of the edge's stack: %s", opt, err)
		}
	}
	if err := s.SetPortRange(1024, 65535); err != nil {
		return fmt.Errorf("set port range of the edge's stack: %s", err)
	}
	return nil
}

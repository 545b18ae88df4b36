// SPDX-License-Identifier: Apache-2.0

package netstack

import (
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

// refuser is UDP that tells a socket of this stack itself when nobody takes
// its datagram. An ICMP message would do, but for the limit on those (a
// thousand a second, Linux has it too), from which Linux exempts the loopback:
// there, every datagram that nobody takes is refused.
type refuser struct {
	stack.TransportProtocol
	stack *stack.Stack
}

func newRefuser(s *stack.Stack) stack.TransportProtocol {
	return &refuser{udp.NewProtocol(s), s}
}

// HandleUnknownDestinationPacket implements stack.TransportProtocol.
func (p *refuser) HandleUnknownDestinationPacket(id stack.TransportEndpointID, pkt *stack.PacketBuffer) stack.UnknownDestinationPacketDisposition {
	d := p.TransportProtocol.HandleUnknownDestinationPacket(id, pkt)
	if d != stack.UnknownDestinationPacketUnhandled || p.stack.CheckLocalAddress(0, pkt.NetworkProtocolNumber, id.RemoteAddress) == 0 {
		return d
	}
	sender := stack.TransportEndpointID{
		LocalAddress: id.RemoteAddress, LocalPort: id.RemotePort, RemoteAddress: id.LocalAddress, RemotePort: id.LocalPort,
	}
	u, ok := p.stack.FindTransportEndpoint(pkt.NetworkProtocolNumber, header.UDPProtocolNumber, sender, pkt.NICID).(*UDP)
	if !ok {
		return d
	}
	u.refused()
	return stack.UnknownDestinationPacketHandled
}

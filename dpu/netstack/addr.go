// SPDX-License-Identifier: Apache-2.0

package netstack

import (
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// Address converts an IP address; an invalid one gives the empty address.
func Address(a netip.Addr) tcpip.Address {
	switch {
	case a.Is4():
		return tcpip.AddrFrom4(a.As4())
	case a.Is6():
		return tcpip.AddrFrom16(a.As16())
	}
	return tcpip.Address{}
}

// Addr is the inverse of Address.
func Addr(a tcpip.Address) netip.Addr {
	switch a.Len() {
	case 4:
		return netip.AddrFrom4(a.As4())
	case 16:
		return netip.AddrFrom16(a.As16())
	}
	return netip.Addr{}
}

// Full converts an endpoint. The unspecified address becomes the empty one,
// which is how gVisor spells a wildcard.
func Full(ap netip.AddrPort) tcpip.FullAddress {
	f := tcpip.FullAddress{Port: ap.Port()}
	if a := ap.Addr(); a.IsValid() && !a.IsUnspecified() {
		f.Addr = Address(a)
	}
	return f
}

// AddrPort is the inverse of Full, for an endpoint of the given family.
func AddrPort(f tcpip.FullAddress, v6 bool) netip.AddrPort {
	a := Addr(f.Addr)
	if !a.IsValid() {
		a = netip.IPv4Unspecified()
		if v6 {
			a = netip.IPv6Unspecified()
		}
	}
	return netip.AddrPortFrom(a, f.Port)
}

// Subnet converts a masked prefix.
func Subnet(p netip.Prefix) tcpip.Subnet {
	return tcpip.AddressWithPrefix{Address: Address(p.Addr()), PrefixLen: p.Bits()}.Subnet()
}

// NetProto is the network protocol of an address.
func NetProto(a netip.Addr) tcpip.NetworkProtocolNumber {
	if a.Is6() && !a.Is4In6() {
		return header.IPv6ProtocolNumber
	}
	return header.IPv4ProtocolNumber
}

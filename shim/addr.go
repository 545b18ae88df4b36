// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"context"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"pno/offload"
)

// tcpAddr is an address as package net shows it.
func tcpAddr(a offload.Addr) *net.TCPAddr {
	ap := a.AddrPort()
	out := &net.TCPAddr{IP: ap.Addr().AsSlice(), Port: int(ap.Port())}
	if a.Scope != 0 {
		out.Zone = strconv.FormatUint(uint64(a.Scope), 10)
	}
	return out
}

// isTCP tells whether a network is ours to offload; the others are the
// kernel's.
func isTCP(network string) bool {
	return network == "tcp" || network == "tcp4" || network == "tcp6"
}

// fits tells whether an address may be used on a network.
func fits(network string, ip netip.Addr) bool {
	is4 := ip.Unmap().Is4()
	return network == "tcp" || is4 == (network == "tcp4")
}

// resolve finds the addresses that "host:port" stands for, in the resolver's
// order. An empty host gives the unspecified address.
func resolve(ctx context.Context, r *net.Resolver, network, address string) ([]netip.AddrPort, error) {
	if r == nil {
		r = net.DefaultResolver
	}
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	port, err := r.LookupPort(ctx, network, service)
	if err != nil {
		return nil, err
	}
	if host == "" {
		ip := netip.IPv6Unspecified()
		if network == "tcp4" {
			ip = netip.IPv4Unspecified()
		}
		return []netip.AddrPort{netip.AddrPortFrom(ip, uint16(port))}, nil
	}
	ips, err := r.LookupNetIP(ctx, strings.Replace(network, "tcp", "ip", 1), host)
	if err != nil {
		return nil, err
	}
	var out []netip.AddrPort
	for _, ip := range ips {
		if fits(network, ip) {
			out = append(out, netip.AddrPortFrom(ip.Unmap(), uint16(port)))
		}
	}
	if len(out) == 0 {
		return nil, &net.AddrError{Err: "no suitable address", Addr: host}
	}
	return out, nil
}

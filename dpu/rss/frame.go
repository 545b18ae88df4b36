// SPDX-License-Identifier: Apache-2.0

package rss

import "encoding/binary"

// All is the answer of Frame for a frame that every shard must see: what
// teaches it a neighbour's hardware address.
const All = -1

const (
	etherIPv4 = 0x0800
	etherARP  = 0x0806
	etherIPv6 = 0x86dd
	etherLen  = 14

	protoICMP   = 1
	protoTCP    = 6
	protoUDP    = 17
	protoICMPv6 = 58

	arpReply = 2
)

// Frame tells which shard a received Ethernet frame belongs to, or All. What
// has no flow (ARP requests, echo requests, fragments, unknown protocols)
// belongs to shard 0, so that it is answered once.
func (t *Table) Frame(f []byte) int {
	if t.shards == 1 || len(f) < etherLen+20 {
		return 0
	}
	b := f[etherLen:]
	switch binary.BigEndian.Uint16(f[12:]) {
	case etherIPv4:
		return t.packet4(b, true)
	case etherIPv6:
		return t.packet6(b, true)
	case etherARP:
		if binary.BigEndian.Uint16(b[6:]) == arpReply {
			return All
		}
	}
	return 0
}

// packet4 classifies an IPv4 packet; outer is false for the packet quoted in
// an ICMP error, which went the other way.
func (t *Table) packet4(b []byte, outer bool) int {
	hdr := int(b[0]&15) * 4
	if len(b) < hdr+8 || hdr < 20 || binary.BigEndian.Uint16(b[6:])&0x3fff != 0 {
		return 0
	}
	switch b[9] {
	case protoTCP, protoUDP:
		addr, port := b[12:20], b[hdr:hdr+4]
		if outer {
			return t.shard(t.sum(0, addr) ^ t.sum(8, port))
		}
		return t.shard(t.sum(0, addr[4:]) ^ t.sum(4, addr[:4]) ^ t.sum(8, port[2:]) ^ t.sum(dstPort4, port[:2]))
	case protoICMP:
		// Errors (unreachable, time exceeded, parameter problem) concern the
		// flow that they quote.
		if typ := b[hdr]; outer && (typ == 3 || typ == 11 || typ == 12) && len(b) >= hdr+8+28 {
			return t.packet4(b[hdr+8:], false)
		}
	}
	return 0
}

func (t *Table) packet6(b []byte, outer bool) int {
	if len(b) < 44 {
		return 0
	}
	switch b[6] {
	case protoTCP, protoUDP:
		addr, port := b[8:40], b[40:44]
		if outer {
			return t.shard(t.sum(0, addr) ^ t.sum(32, port))
		}
		return t.shard(t.sum(0, addr[16:]) ^ t.sum(16, addr[:16]) ^ t.sum(32, port[2:]) ^ t.sum(dstPort6, port[:2]))
	case protoICMPv6:
		switch typ := b[40]; {
		case typ == 134 || typ == 136: // router and neighbour advertisements
			return All
		case typ < 128 && outer && len(b) >= 48+44:
			return t.packet6(b[48:], false)
		}
	}
	return 0
}

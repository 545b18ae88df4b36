// SPDX-License-Identifier: Apache-2.0

// Package rss decides which shard a flow belongs to, in the way of a network
// card: a Toeplitz hash over the 4-tuple of the received packet, an
// indirection table from hash to shard. It also answers the inverse question,
// which local port brings the replies of a connection to a given shard, in
// constant time: the hash is linear over XOR, so the local port's share of it
// can be tabulated once.
//
// A Table is immutable after New and may be used by every shard at once.
package rss

import (
	"encoding/binary"
	"net/netip"
)

// Key is the hash key that the RSS specification publishes test vectors for.
// Cards are programmed with it, so that a device with as many queues as there
// are shards delivers each flow to its shard without a hand-over.
var Key = [40]byte{
	0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0,
	0xd0, 0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c,
	0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
}

// Buckets is the size of the indirection table: bucket b belongs to shard
// b mod the number of shards.
const Buckets = 128

// tupleMax is the longest hashed tuple: IPv6 addresses and ports.
const tupleMax = 36

// Offsets of the destination port in the two tuple formats.
const (
	dstPort4 = 10
	dstPort6 = 34
)

// Table holds the hash as one XOR a byte, and the local ports by the share
// that they contribute to the bucket.
type Table struct {
	xor    [tupleMax][256]uint32
	shards int
	ports4 [Buckets][]uint16
	ports6 [Buckets][]uint16
}

// New returns the table for a number of shards, choosing local ports from lo
// to hi.
func New(shards int, lo, hi uint16) *Table {
	t := &Table{shards: shards}
	for pos := range t.xor {
		for bit := range 8 {
			// The 32 key bits that a set bit at this position XORs in.
			var w uint64
			copy8 := [8]byte{}
			copy(copy8[:], Key[pos:])
			w = binary.BigEndian.Uint64(copy8[:])
			share := uint32(w >> (32 - bit))
			for v := range 256 {
				if v&(0x80>>bit) != 0 {
					t.xor[pos][v] ^= share
				}
			}
		}
	}
	for p := int(lo); p <= int(hi); p++ {
		a, b := t.portShare(dstPort4, uint16(p)), t.portShare(dstPort6, uint16(p))
		t.ports4[a%Buckets] = append(t.ports4[a%Buckets], uint16(p))
		t.ports6[b%Buckets] = append(t.ports6[b%Buckets], uint16(p))
	}
	return t
}

func (t *Table) portShare(at int, p uint16) uint32 {
	return t.xor[at][p>>8] ^ t.xor[at+1][p&0xff]
}

// Shards is the number of shards that the table spreads over.
func (t *Table) Shards() int { return t.shards }

// sum hashes a tuple given as bytes.
func (t *Table) sum(at int, b []byte) (h uint32) {
	for i, v := range b {
		h ^= t.xor[at+i][v]
	}
	return h
}

// Hash is the Toeplitz hash of a packet from src to dst, both of the same
// family.
func (t *Table) Hash(src, dst netip.AddrPort) uint32 {
	if src.Addr().Is4() {
		s, d := src.Addr().As4(), dst.Addr().As4()
		return t.sum(0, s[:]) ^ t.sum(4, d[:]) ^ t.portShare(8, src.Port()) ^ t.portShare(dstPort4, dst.Port())
	}
	s, d := src.Addr().As16(), dst.Addr().As16()
	return t.sum(0, s[:]) ^ t.sum(16, d[:]) ^ t.portShare(32, src.Port()) ^ t.portShare(dstPort6, dst.Port())
}

func (t *Table) shard(h uint32) int { return int(h%Buckets) % t.shards }

// Shard is where the packets that peer sends to local arrive.
func (t *Table) Shard(local, peer netip.AddrPort) int {
	if t.shards == 1 {
		return 0
	}
	return t.shard(t.Hash(peer, local))
}

// Port returns the try-th local port whose replies from peer come to shard.
// seed spreads the choice; a caller counts try up from 0 while the port it
// got turns out to be taken. ok is false when no port is left.
func (t *Table) Port(local netip.Addr, peer netip.AddrPort, shard int, seed uint32, try int) (port uint16, ok bool) {
	h := t.Hash(peer, netip.AddrPortFrom(local, 0))
	lists := &t.ports4
	if !peer.Addr().Is4() {
		lists = &t.ports6
	}
	// Buckets shard, shard+shards, … belong to the shard: take them in turn,
	// starting anywhere.
	mine := (Buckets - shard + t.shards - 1) / t.shards
	for range mine {
		turn := (int(seed%uint32(mine)) + try) % mine
		bucket := uint32(shard + turn*t.shards)
		list := lists[(bucket^h)%Buckets]
		if round := try / mine; round < len(list) {
			return list[(int(seed>>7)+round)%len(list)], true
		}
		try++
	}
	return 0, false
}

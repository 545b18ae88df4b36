// SPDX-License-Identifier: Apache-2.0

package linktest

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// The suite's frame: Ethernet, IPv4, UDP, then a magic, the sequence number
// and a pattern that depends on it to the end of the frame.
const (
	headerLen = 14 // Ethernet
	magicAt   = 14 + 20 + 8
	seqAt     = magicAt + 8
	patternAt = seqAt + 4
	minSize   = 60 // the least a wire carries without padding
)

var magic = []byte("linktest")

// encode fills the whole of f, which is at least minSize long.
func encode(f []byte, src, dst [6]byte, seq uint32) {
	copy(f, dst[:])
	copy(f[6:], src[:])
	binary.BigEndian.PutUint16(f[12:], 0x0800)

	ip := f[14:34]
	clear(ip)
	ip[0] = 0x45
	binary.BigEndian.PutUint16(ip[2:], uint16(len(f)-14))
	ip[8], ip[9] = 64, 17
	copy(ip[12:], []byte{198, 18, 255, 1})
	copy(ip[16:], []byte{198, 18, 255, 2})
	binary.BigEndian.PutUint16(ip[10:], ^onesSum(ip))

	udp := f[34:magicAt]
	binary.BigEndian.PutUint16(udp[0:], 40000)
	binary.BigEndian.PutUint16(udp[2:], 40001)
	binary.BigEndian.PutUint16(udp[4:], uint16(len(f)-34))
	binary.BigEndian.PutUint16(udp[6:], 0) // IPv4 allows UDP without a checksum

	copy(f[magicAt:], magic)
	binary.BigEndian.PutUint32(f[seqAt:], seq)
	for i := patternAt; i < len(f); i++ {
		f[i] = pattern(seq, i)
	}
}

// decode returns the sequence number; ours is false for frames of others.
func decode(f []byte, dst [6]byte) (seq uint32, ours bool, err error) {
	if len(f) < minSize || !bytes.Equal(f[magicAt:seqAt], magic) {
		return 0, false, nil
	}
	if !bytes.Equal(f[:6], dst[:]) {
		return 0, true, fmt.Errorf("destination address is % x, want % x", f[:6], dst)
	}
	if length := int(binary.BigEndian.Uint16(f[16:])); length != len(f)-14 {
		return 0, true, fmt.Errorf("%d bytes long, sent as %d", len(f), length+14)
	}
	if sum := onesSum(f[14:34]); sum != 0xffff {
		return 0, true, fmt.Errorf("IP header sums to %#04x", sum)
	}
	seq = binary.BigEndian.Uint32(f[seqAt:])
	for i := patternAt; i < len(f); i++ {
		if f[i] != pattern(seq, i) {
			return seq, true, fmt.Errorf("frame %d byte %d is %#02x, want %#02x", seq, i, f[i], pattern(seq, i))
		}
	}
	return seq, true, nil
}

func pattern(seq uint32, i int) byte { return byte(seq*31 + uint32(i)*7) }

// onesSum is the Internet checksum before its complement, over an even length.
func onesSum(b []byte) uint16 {
	var sum uint32
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// SPDX-License-Identifier: Apache-2.0

package afpacket

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// finishChecksum completes a TCP or UDP checksum that the sender left to
// hardware. The field then holds the sum of the pseudo header, so that the sum
// of the whole segment, the field included, is what the wire carries. It
// reports whether it understood the frame.
func finishChecksum(frame []byte) bool {
	proto, segment := transport(frame)
	var at int
	switch proto {
	case unix.IPPROTO_TCP:
		at = 16
	case unix.IPPROTO_UDP:
		at = 6
	default:
		return false
	}
	if len(segment) < at+2 {
		return false
	}
	sum := ^onesSum(segment)
	if sum == 0 && proto == unix.IPPROTO_UDP {
		sum = 0xffff // zero would mean that there is no checksum
	}
	binary.BigEndian.PutUint16(segment[at:], sum)
	return true
}

// transport finds the transport segment of an unfragmented IP packet, without
// the padding of the frame. IPv6 extension headers are not looked through: no
// kernel leaves a checksum behind one to hardware.
func transport(frame []byte) (proto byte, segment []byte) {
	if len(frame) < ethernetHeader {
		return 0, nil
	}
	ip := frame[ethernetHeader:]
	switch binary.BigEndian.Uint16(frame[12:]) {
	case unix.ETH_P_IP:
		if len(ip) < 20 {
			return 0, nil
		}
		header, total := int(ip[0]&15)*4, int(binary.BigEndian.Uint16(ip[2:]))
		fragment := binary.BigEndian.Uint16(ip[6:]) & 0x3fff
		if header < 20 || total < header || total > len(ip) || fragment != 0 {
			return 0, nil
		}
		return ip[9], ip[header:total]
	case unix.ETH_P_IPV6:
		if len(ip) < 40 {
			return 0, nil
		}
		length := int(binary.BigEndian.Uint16(ip[4:]))
		if 40+length > len(ip) {
			return 0, nil
		}
		return ip[6], ip[40 : 40+length]
	}
	return 0, nil
}

// onesSum is the Internet checksum before its complement.
func onesSum(b []byte) uint16 {
	var sum uint64
	for ; len(b) >= 4; b = b[4:] {
		sum += uint64(binary.BigEndian.Uint32(b))
	}
	if len(b) >= 2 {
		sum += uint64(binary.BigEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) == 1 {
		sum += uint64(b[0]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

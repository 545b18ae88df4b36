// SPDX-License-Identifier: Apache-2.0

package wire

import "encoding/binary"

// FlowHash is the default steering: a hash of the addresses and ports of TCP
// and UDP, the same for both directions of a flow. Other frames hash to 0.
func FlowHash(frame []byte) int {
	if len(frame) < headerLen {
		return 0
	}
	ip := frame[headerLen:]
	var proto byte
	var addrs, ports []byte
	switch binary.BigEndian.Uint16(frame[12:]) {
	case 0x0800:
		if len(ip) < 20 || len(ip) < int(ip[0]&15)*4 {
			return 0
		}
		if binary.BigEndian.Uint16(ip[6:])&0x3fff != 0 {
			return 0 // a fragment: only the first one has ports
		}
		proto, addrs, ports = ip[9], ip[12:20], ip[int(ip[0]&15)*4:]
	case 0x86dd:
		if len(ip) < 40 {
			return 0
		}
		proto, addrs, ports = ip[6], ip[8:40], ip[40:]
	default:
		return 0
	}
	if (proto != 6 && proto != 17) || len(ports) < 4 {
		return 0
	}
	var sum uint32
	half := len(addrs) / 2
	for i := 0; i < half; i += 4 {
		sum ^= binary.BigEndian.Uint32(addrs[i:]) ^ binary.BigEndian.Uint32(addrs[half+i:])
	}
	sum ^= uint32(binary.BigEndian.Uint16(ports) ^ binary.BigEndian.Uint16(ports[2:]))
	sum *= 0x9e3779b1
	return int(sum >> 8)
}

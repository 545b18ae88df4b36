// SPDX-License-Identifier: Apache-2.0

package netstack

import (
	"encoding/binary"
	"syscall"
)

// Linux's values of IP_MTU_DISCOVER, and options that package syscall lacks.
const (
	pmtudiscDont = iota
	pmtudiscWant
	pmtudiscDo
	pmtudiscProbe
	pmtudiscInterface
	pmtudiscOmit

	ipMTUDiscover   = 10
	ipv6MTUDiscover = 23
)

// Bounds of SO_RCVBUF, as the kernel's own: it keeps twice of what is asked.
const (
	leastUDPBuffer = 2304
	mostUDPBuffer  = 8 << 20
)

// SetOption sets a Linux socket option; what would have no effect here is
// refused with ENOPROTOOPT. Options of how a datagram is received are the
// host's: every datagram comes with all that they tell.
func (u *UDP) SetOption(level, name uint32, val []byte) syscall.Errno {
	if len(val) < 4 {
		return syscall.EINVAL
	}
	v := int(int32(binary.LittleEndian.Uint32(val)))
	switch (key{level, name}) {
	case key{syscall.SOL_SOCKET, syscall.SO_RCVBUF}:
		u.mu.Lock()
		u.limit = min(max(v, leastUDPBuffer), mostUDPBuffer)
		u.mu.Unlock()
	case key{syscall.SOL_SOCKET, syscall.SO_SNDBUF}: // the ring's window is the buffer
	case key{syscall.IPPROTO_IP, syscall.IP_TOS}:
		u.out4.tos = uint8(max(v, 0))
	case key{syscall.IPPROTO_IPV6, ipv6TClass}:
		u.out6.tos = uint8(max(v, 0))
	case key{syscall.IPPROTO_IP, syscall.IP_TTL}:
		if v == 0 || v < -1 || v > 255 {
			return syscall.EINVAL
		}
		u.out4.ttl = uint8(max(v, 0))
	case key{syscall.IPPROTO_IPV6, syscall.IPV6_UNICAST_HOPS}:
		if v < -1 || v > 255 {
			return syscall.EINVAL
		}
		u.out6.ttl = uint8(max(v, 0))
	case key{syscall.IPPROTO_IP, ipMTUDiscover}, key{syscall.IPPROTO_IPV6, ipv6MTUDiscover}:
		if v < pmtudiscDont || v > pmtudiscOmit {
			return syscall.EINVAL
		}
		u.mtudisc = v
	default:
		return syscall.ENOPROTOOPT
	}
	return 0
}

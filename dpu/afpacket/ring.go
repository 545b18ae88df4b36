// SPDX-License-Identifier: Apache-2.0

package afpacket

import (
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// headerLen is where transmit data begins in a slot: the header, aligned.
	headerLen = (unix.SizeofTpacket2Hdr + unix.TPACKET_ALIGNMENT - 1) &^ (unix.TPACKET_ALIGNMENT - 1)
	// slotOverhead is what the kernel may put before a received frame: header,
	// source address, and space to align the IP header.
	slotOverhead = headerLen + unix.SizeofSockaddrLinklayer + 2*unix.TPACKET_ALIGNMENT
	// blockSize is the unit the kernel allocates the ring in. Bigger blocks
	// may not be found in a fragmented memory.
	blockSize = 64 << 10
)

// slots is one direction's ring: frames of one size, each behind a header
// whose status word says who owns it. The status is read with acquire and
// written with release ordering; everything else in a slot is the owner's.
type slots struct {
	mem  []byte
	size int
	n    uint32
}

func newSlots(mem []byte, size int) slots {
	return slots{mem: mem, size: size, n: uint32(len(mem) / size)}
}

// slot returns the whole slot behind a free-running index.
func (s *slots) slot(i uint32) []byte {
	at := int(i%s.n) * s.size
	return s.mem[at : at+s.size : at+s.size]
}

func header(slot []byte) *unix.Tpacket2Hdr {
	return (*unix.Tpacket2Hdr)(unsafe.Pointer(unsafe.SliceData(slot)))
}

func status(h *unix.Tpacket2Hdr) *atomic.Uint32 {
	return (*atomic.Uint32)(unsafe.Pointer(&h.Status))
}

// received checks a received slot and returns the frame in it, or nil when the
// frame is truncated, longer than limit, tagged, or not where the kernel says.
func received(slot []byte, state uint32, limit int) []byte {
	h := header(slot)
	mac, length := int(h.Mac), int(h.Snaplen)
	if h.Len != h.Snaplen || length < ethernetHeader || length > limit || mac < headerLen || mac+length > len(slot) {
		return nil
	}
	if state&unix.TP_STATUS_VLAN_VALID != 0 {
		return nil // the tag is gone from the data: it would pass for untagged
	}
	frame := slot[mac : mac+length : mac+length]
	if state&unix.TP_STATUS_CSUMNOTREADY != 0 && !finishChecksum(frame) {
		return nil
	}
	return frame
}

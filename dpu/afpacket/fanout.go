// SPDX-License-Identifier: Apache-2.0

package afpacket

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"pno/dpu/link"
)

// fanout is a group of sockets among which the kernel divides received frames
// by the interface's receive queue.
type fanout struct {
	id     uint16
	joined bool
}

func (f *fanout) join(fd int) error {
	mode := unix.PACKET_FANOUT_QM
	if !f.joined {
		mode |= unix.PACKET_FANOUT_FLAG_UNIQUEID
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_FANOUT, mode<<16|int(f.id)); err != nil {
		return err
	}
	if f.joined {
		return nil
	}
	got, err := unix.GetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_FANOUT)
	if err != nil {
		return err
	}
	f.id, f.joined = uint16(got), true
	return nil
}

// inReceiveOrder orders the sockets of a group by the receive queue whose
// frames they get, which is a packet's queue number modulo the group's size.
// Drivers record the receive queue plus one, zero being unknown; veth leaves
// the number of the sender's transmit queue, which is its receive queue.
func inReceiveOrder(queues []*queue, kind string) []link.Queue {
	first := 1
	if kind == "veth" {
		first = 0
	}
	order := make([]link.Queue, len(queues))
	for i := range queues {
		order[i] = queues[(i+first)%len(queues)]
	}
	return order
}

// networkOrder turns a protocol number into the byte order of sockaddr_ll.
func networkOrder(v uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], v)
	return binary.NativeEndian.Uint16(b[:])
}

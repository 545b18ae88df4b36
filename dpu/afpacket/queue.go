// SPDX-License-Identifier: Apache-2.0

package afpacket

import (
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"pno/dpu/link"
)

const ethernetHeader = 14

// queue implements link.Queue over one socket.
type queue struct {
	fd   int
	name string // for errors: interface and queue number
	room int    // of a frame: MTU and Ethernet header
	mem  []byte

	rx     slots
	rxNext uint32 // the slot to look at next
	rxHeld uint32 // slots before rxNext that are not released

	tx       slots
	txNext   uint32 // the slot to hand out next
	unsent   bool   // something was committed and not seen taken
	linkDown bool   // the interface refuses frames: no use to retry at once

	txPackets, txBytes uint64 // committed since the last Flush

	closed atomic.Bool
	count  counters
}

// counters are written by the queue's owner, once a batch, and read by Stats.
type counters struct {
	rxPackets, rxBytes, rxBad atomic.Uint64
	txPackets, txBytes, txBad atomic.Uint64
	kicks                     atomic.Uint64
}

func (q *queue) FD() int { return q.fd }

func (q *queue) Recv(frames [][]byte) (int, error) {
	if q.closed.Load() {
		return 0, link.ErrClosed
	}
	n, bytes, bad, holding := 0, 0, uint64(0), q.rxHeld > 0
	// A held slot still looks received: never go round the ring to one.
	for n < len(frames) && q.rxHeld < q.rx.n {
		slot := q.rx.slot(q.rxNext)
		state := status(header(slot)).Load()
		if state&unix.TP_STATUS_USER == 0 {
			break
		}
		q.rxNext++
		q.rxHeld++
		frame := received(slot, state, q.room)
		if frame == nil {
			bad++
			continue
		}
		frames[n] = frame
		bytes += len(frame)
		n++
	}
	if n > 0 {
		q.count.rxPackets.Add(uint64(n))
		q.count.rxBytes.Add(uint64(bytes))
	}
	if bad > 0 {
		q.count.rxBad.Add(bad)
		if n == 0 && !holding {
			q.Release() // an owner that holds nothing need not call it
		}
	}
	return n, nil
}

func (q *queue) Release() {
	if q.closed.Load() {
		return
	}
	for ; q.rxHeld > 0; q.rxHeld-- {
		status(header(q.rx.slot(q.rxNext - q.rxHeld))).Store(unix.TP_STATUS_KERNEL)
	}
}

func (q *queue) TxAlloc() []byte {
	if q.closed.Load() {
		return nil
	}
	slot := q.tx.slot(q.txNext)
	if status(header(slot)).Load() != unix.TP_STATUS_AVAILABLE {
		return nil
	}
	return slot[headerLen : headerLen+q.room : headerLen+q.room]
}

func (q *queue) TxCommit(n int) {
	if q.closed.Load() {
		return
	}
	h := header(q.tx.slot(q.txNext))
	if status(h).Load() != unix.TP_STATUS_AVAILABLE {
		return // nothing was allocated
	}
	if n < ethernetHeader || n > q.room {
		q.count.txBad.Add(1)
		return
	}
	h.Len = uint32(n)
	status(h).Store(unix.TP_STATUS_SEND_REQUEST)
	q.txNext++
	q.unsent = true
	q.txPackets++
	q.txBytes += uint64(n)
}

func (q *queue) Flush() error {
	if q.closed.Load() {
		return link.ErrClosed
	}
	if q.txPackets > 0 {
		q.count.txPackets.Add(q.txPackets)
		q.count.txBytes.Add(q.txBytes)
		q.txPackets, q.txBytes = 0, 0
	}
	if !q.waiting() {
		return nil
	}
	q.count.kicks.Add(1)
	q.linkDown = false
	_, _, errno := unix.Syscall6(unix.SYS_SENDTO, uintptr(q.fd), 0, 0, unix.MSG_DONTWAIT, 0, 0)
	switch errno {
	case 0, unix.EAGAIN, unix.EBUSY, unix.ENOBUFS, unix.ENOMEM, unix.EINTR:
		// The kernel stopped before the end of the ring, for now.
		return nil
	case unix.ENETDOWN, unix.ENXIO:
		q.linkDown = true
		return nil
	default:
		return fmt.Errorf("%s: start transmission: %w", q.name, errno)
	}
}

func (q *queue) TxPending() bool {
	return !q.closed.Load() && !q.linkDown && q.waiting()
}

// waiting tells whether the kernel has yet to take committed frames. It takes
// them in order, so the last one tells for all.
func (q *queue) waiting() bool {
	if q.unsent && status(header(q.tx.slot(q.txNext-1))).Load() != unix.TP_STATUS_SEND_REQUEST {
		q.unsent = false
	}
	return q.unsent
}

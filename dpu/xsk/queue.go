// SPDX-License-Identifier: Apache-2.0

package xsk

import (
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"pno/dpu/link"
)

const ethernetHeader = 14

// queue implements link.Queue over one socket.
type queue struct {
	sock *socket
	name string // for errors: interface and queue number
	room int    // of a transmit frame: MTU and Ethernet header

	held   []uint32 // receive frames since the last Release
	free   []uint32 // transmit frames, the last one is next
	failed error    // a ring index that cannot be; final

	copied bool // copy mode: a kick sends, and can find the device full

	// linkDown is set while the interface refuses to transmit. The frames stay
	// in the ring; telling the owner to retry at once would make it spin.
	linkDown bool

	txBytes   uint64 // committed since the last Flush
	txPackets uint64

	closed atomic.Bool
	count  counters
}

// counters are written by the queue's owner, once a batch, and read by Stats.
type counters struct {
	rxPackets, rxBytes, rxBad atomic.Uint64
	txPackets, txBytes, txBad atomic.Uint64
	kicks                     atomic.Uint64
}

func newQueue(s *socket, name string, mtu int) *queue {
	q := &queue{sock: s, name: name, room: mtu + ethernetHeader}
	rx, all := s.umem.rx, uint32(len(s.umem.withKernel))
	q.held = make([]uint32, 0, rx)
	q.free = make([]uint32, 0, all-rx)
	for f := all; f > rx; f-- {
		q.free = append(q.free, f-1)
	}
	for f := range rx {
		s.fill.put(s.umem.give(f))
	}
	s.fill.publish()
	return q
}

func (q *queue) FD() int { return q.sock.fd }

// check returns what has ended the queue, if anything has.
func (q *queue) check() error {
	if q.closed.Load() {
		return link.ErrClosed
	}
	return q.failed
}

func (q *queue) fail(what string, err error) error {
	q.failed = fmt.Errorf("%s: %s: %w", q.name, what, err)
	return q.failed
}

func (q *queue) Recv(frames [][]byte) (int, error) {
	if err := q.check(); err != nil {
		return 0, err
	}
	waiting, err := q.sock.rx.available()
	if err != nil {
		return 0, q.fail("receive", err)
	}
	if waiting == 0 || len(frames) == 0 {
		return 0, nil
	}
	n, bytes, bad, holding := 0, 0, uint64(0), len(q.held) > 0
	for ; waiting > 0 && n < len(frames); waiting-- {
		d := q.sock.rx.take()
		frame, data, err := q.sock.umem.received(d)
		if err != nil {
			bad++
			continue
		}
		q.held = append(q.held, frame)
		// A frame in several buffers was not asked for and cannot be used.
		if d.Options&unix.XDP_PKT_CONTD != 0 || len(data) < ethernetHeader {
			bad++
			continue
		}
		frames[n] = data
		bytes += len(data)
		n++
	}
	q.sock.rx.release()
	q.count.rxPackets.Add(uint64(n))
	q.count.rxBytes.Add(uint64(bytes))
	if bad > 0 {
		q.count.rxBad.Add(bad)
		if n == 0 && !holding {
			q.Release() // an owner that holds nothing need not call it
		}
	}
	return n, nil
}

func (q *queue) Release() {
	if len(q.held) == 0 || q.check() != nil {
		return
	}
	for _, frame := range q.held {
		// The fill ring has a slot for every receive frame.
		q.sock.fill.put(q.sock.umem.give(frame))
	}
	q.held = q.held[:0]
	q.sock.fill.publish()
	if q.sock.fill.needWakeup() {
		q.count.kicks.Add(1)
		// A driver that could not be told now is told by the next poll of FD.
		_ = q.sock.kickFill()
	}
}

func (q *queue) TxAlloc() []byte {
	if q.check() != nil {
		return nil
	}
	if len(q.free) == 0 {
		q.reclaim()
		if len(q.free) == 0 {
			return nil
		}
	}
	return q.sock.umem.data(q.free[len(q.free)-1], q.room)
}

func (q *queue) TxCommit(n int) {
	if q.check() != nil || len(q.free) == 0 {
		return
	}
	if n < ethernetHeader || n > q.room {
		q.count.txBad.Add(1)
		return
	}
	last := len(q.free) - 1
	frame := q.free[last]
	q.free = q.free[:last]
	// The transmit ring has a slot for every transmit frame.
	q.sock.tx.put(unix.XDPDesc{Addr: q.sock.umem.give(frame), Len: uint32(n)})
	q.txPackets++
	q.txBytes += uint64(n)
}

func (q *queue) Flush() error {
	if err := q.check(); err != nil {
		return err
	}
	if q.txPackets > 0 {
		q.sock.tx.publish()
		q.count.txPackets.Add(q.txPackets)
		q.count.txBytes.Add(q.txBytes)
		q.txPackets, q.txBytes = 0, 0
	}
	waiting, err := q.sock.tx.waiting()
	if err != nil {
		return q.fail("transmit", err)
	}
	if waiting > 0 && q.sock.tx.needWakeup() {
		if err := q.kick(); err != nil {
			return err
		}
	}
	q.reclaim()
	return q.failed
}

func (q *queue) kick() error {
	q.count.kicks.Add(1)
	q.linkDown = false
	switch errno := q.sock.kickTx(); errno {
	case 0, unix.EAGAIN, unix.ENOBUFS, unix.ENOMEM, unix.EINTR:
		// The kernel stopped before the end of the ring, for now.
		return nil
	case unix.EBUSY:
		if q.copied {
			q.count.txBad.Add(1) // the device refused a frame, which is gone
		}
		return nil
	case unix.ENETDOWN, unix.ENXIO:
		q.linkDown = true
		return nil
	default:
		return fmt.Errorf("%s: start transmission: %w", q.name, errno)
	}
}

// reclaim takes back the frames whose transmission is complete.
func (q *queue) reclaim() {
	n, err := q.sock.completion.available()
	if err != nil {
		q.fail("complete transmission", err)
		return
	}
	if n == 0 {
		return
	}
	for ; n > 0; n-- {
		frame, err := q.sock.umem.completed(q.sock.completion.take())
		if err != nil {
			q.count.txBad.Add(1)
			continue
		}
		q.free = append(q.free, frame)
	}
	q.sock.completion.release()
}

func (q *queue) TxPending() bool {
	if q.check() != nil {
		return false
	}
	if q.txPackets > 0 {
		return true
	}
	waiting, err := q.sock.tx.waiting()
	if err != nil {
		q.fail("transmit", err)
		return false
	}
	// With no wake-up wanted, the driver is at work on the rest by itself.
	return waiting > 0 && !q.linkDown && q.sock.tx.needWakeup()
}

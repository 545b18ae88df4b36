// SPDX-License-Identifier: Apache-2.0

package asavie

import (
	"fmt"
	"sync/atomic"

	"github.com/asavie/xdp"

	"pno/dpu/link"
)

// queue implements link.Queue. Frames below ringFrames are for receiving, the
// others for transmitting; the library's own list of free frames also has the
// received ones that the owner still reads, so the queue keeps its own.
type queue struct {
	sock      *xdp.Socket
	name      string
	room      int
	frameSize uint64

	held      []xdp.Desc // receive frames since the last Release
	free      []xdp.Desc // transmit frames, the last one is next
	inFlight  [ringFrames]bool
	committed []xdp.Desc
	failed    error

	closed             atomic.Bool
	rxPackets, rxBytes atomic.Uint64
	txPackets, txBytes atomic.Uint64
	kicks, txDropped   atomic.Uint64
}

func newQueue(sock *xdp.Socket, name string, mtu, frameSize int) *queue {
	q := &queue{
		sock: sock, name: name, room: mtu + ethernetHeader, frameSize: uint64(frameSize),
		held: make([]xdp.Desc, 0, ringFrames), free: make([]xdp.Desc, 0, ringFrames),
		committed: make([]xdp.Desc, 0, ringFrames),
	}
	for i := range uint64(ringFrames) {
		q.held = append(q.held, xdp.Desc{Addr: i * q.frameSize})
		q.free = append(q.free, xdp.Desc{Addr: (2*ringFrames - 1 - i) * q.frameSize, Len: uint32(q.room)})
	}
	q.Release()
	return q
}

func (q *queue) FD() int { return q.sock.FD() }

func (q *queue) check() error {
	if q.closed.Load() {
		return link.ErrClosed
	}
	return q.failed
}

// guard turns a panic of the library into the queue's final error.
func (q *queue) guard(err *error) {
	if p := recover(); p != nil {
		q.failed = fmt.Errorf("%s: asavie/xdp: %v", q.name, p)
		*err = q.failed
	}
}

func (q *queue) Recv(frames [][]byte) (n int, err error) {
	if err := q.check(); err != nil {
		return 0, err
	}
	defer q.guard(&err)
	bytes := 0
	for _, d := range q.sock.Receive(len(frames)) {
		frames[n] = q.sock.GetFrame(d)
		bytes += int(d.Len)
		n++
		d.Addr -= d.Addr % q.frameSize
		q.held = append(q.held, d)
	}
	if n > 0 {
		q.rxPackets.Add(uint64(n))
		q.rxBytes.Add(uint64(bytes))
	}
	return n, nil
}

func (q *queue) Release() {
	if len(q.held) > 0 && q.check() == nil {
		q.sock.Fill(q.held) // the fill ring has a slot for every receive frame
		q.held = q.held[:0]
	}
}

func (q *queue) TxAlloc() []byte {
	if q.check() != nil {
		return nil
	}
	if len(q.free) == 0 {
		if q.reclaim(); len(q.free) == 0 {
			return nil
		}
	}
	return q.sock.GetFrame(q.free[len(q.free)-1])
}

func (q *queue) TxCommit(n int) {
	if q.check() != nil || len(q.free) == 0 {
		return
	}
	if n < ethernetHeader || n > q.room {
		q.txDropped.Add(1)
		return
	}
	last := len(q.free) - 1
	d := q.free[last]
	q.free = q.free[:last]
	d.Len = uint32(n)
	q.committed = append(q.committed, d)
}

// txIndex numbers the transmit frames.
func (q *queue) txIndex(d xdp.Desc) int { return int(d.Addr/q.frameSize) - ringFrames }

func (q *queue) Flush() (err error) {
	if err := q.check(); err != nil {
		return err
	}
	defer q.guard(&err)
	if !q.waiting() {
		return nil
	}
	bytes := uint64(0)
	for _, d := range q.committed {
		bytes += uint64(d.Len)
		q.inFlight[q.txIndex(d)] = true // not before: to the library it was free
	}
	q.kicks.Add(1)
	// The transmit ring has a slot for every transmit frame. With nothing
	// committed this is only the system call.
	q.sock.Transmit(q.committed)
	q.txPackets.Add(uint64(len(q.committed)))
	q.txBytes.Add(bytes)
	q.committed = q.committed[:0]
	return nil
}

// reclaim finds the frames that are not in flight any more.
func (q *queue) reclaim() {
	n := q.sock.NumCompleted()
	if n == 0 {
		return
	}
	q.sock.Complete(n)
	for _, d := range q.sock.GetDescs(2 * ringFrames) {
		if i := q.txIndex(d); i >= 0 && q.inFlight[i] {
			q.inFlight[i] = false
			q.free = append(q.free, xdp.Desc{Addr: d.Addr, Len: uint32(q.room)})
		}
	}
}

func (q *queue) TxPending() bool { return q.check() == nil && q.waiting() }

func (q *queue) waiting() bool {
	return len(q.committed) > 0 || q.sock.NumFreeTxSlots() < ringFrames
}

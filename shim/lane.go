// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"

	"pno/offload"
)

// keepFree is the part of an H2D ring that data leaves to other records.
const keepFree = 8192

// lane is one shard's queue pair.
type lane struct {
	s     *session
	shard int
	own   table // handles chosen here
	dpu   table // handles chosen by the DPU

	rx     sync.Mutex // the consumer's half of qp, and what follows
	oldest *segment   // payloads that lie in the ring, in its order
	newest *segment
	spare  *segment
	drains uint32
	broken bool // the DPU broke the protocol: what follows means nothing

	_ [offload.CacheLine]byte

	tx        sync.Mutex // the producer's half of qp, and what follows
	backlog   []control  // records that found no room, before all others
	waiters   []*Conn    // that have data and found no room
	wantSpace atomic.Bool

	qp   *offload.HostQP
	bell int // the session's
}

// control is a record that waits for room in the ring.
type control struct {
	rec     offload.Record
	payload []byte
}

// control sends a record other than data. It never blocks and always succeeds:
// one that finds no room goes first when there is some.
func (l *lane) control(op offload.Op, flags uint8, sock, seq, ack uint32, payload []byte) {
	l.tx.Lock()
	l.put(control{offload.Record{Op: op, Flags: flags, Sock: sock, Seq: seq, Ack: ack}, payload})
	ring := l.qp.Publish()
	l.tx.Unlock()
	l.ringBell(ring)
}

// put builds a record, now or once there is room. tx is locked.
func (l *lane) put(c control) {
	if len(l.backlog) == 0 && l.emit(c) {
		return
	}
	c.payload = slices.Clone(c.payload)
	l.backlog = append(l.backlog, c)
	l.want()
}

func (l *lane) emit(c control) bool {
	b := l.qp.Emit(c.rec.Op, c.rec.Flags, c.rec.Sock, c.rec.Seq, c.rec.Ack, len(c.payload))
	if b == nil {
		return false
	}
	copy(b, c.payload)
	l.s.counters.inc(statRecordsTx)
	return true
}

// data builds a Send record with as much of b as has room, and tells how much
// that is. tx is locked.
func (l *lane) data(sock, seq, ack uint32, b []byte, more bool) int {
	if len(l.backlog) > 0 {
		return 0
	}
	n := min(len(b), l.qp.Room(keepFree))
	if n <= 0 {
		return 0
	}
	var flags uint8
	if more || n < len(b) {
		flags = offload.FlagMore
	}
	to := l.qp.Emit(offload.OpSend, flags, sock, seq, ack, n)
	if to == nil {
		return 0
	}
	copy(to, b)
	l.s.counters.inc(statRecordsTx)
	return n
}

// want has the poller watch for ring space. tx is locked.
func (l *lane) want() {
	if !l.wantSpace.Swap(true) {
		l.s.kick() // it may sleep, armed for records only
	}
}

// serveSpace sends what waited for ring space, and wakes who did.
func (l *lane) serveSpace() bool {
	l.tx.Lock()
	if !l.qp.HasRoom() {
		l.tx.Unlock()
		return false
	}
	done := 0
	for done < len(l.backlog) && l.emit(l.backlog[done]) {
		done++
	}
	l.backlog = slices.Delete(l.backlog, 0, done)
	ring := l.qp.Publish()
	var wake []*Conn
	if len(l.backlog) == 0 {
		wake, l.waiters = l.waiters, nil
		l.wantSpace.Store(false)
	}
	l.tx.Unlock()
	l.ringBell(ring)
	for _, c := range wake {
		c.roomAgain()
	}
	return done > 0 || len(wake) > 0
}

// ringBell rings the doorbell. No lock need be held: the DPU asks for it once.
func (l *lane) ringBell(ring bool) {
	if !ring {
		return
	}
	one := [8]byte{0: 1}
	if n, err := syscall.Write(l.bell, one[:]); err == nil && n == len(one) {
		l.s.counters.inc(statDoorbells)
	}
	runtime.KeepAlive(l)
}

// arm asks for an interrupt; false: there is something to do first.
func (l *lane) arm() bool {
	l.rx.Lock()
	defer l.rx.Unlock()
	space := l.wantSpace.Load()
	if !l.qp.ArmFor(space) {
		return false
	}
	if space || l.wantSpace.Load() {
		l.tx.Lock()
		room := l.qp.HasRoom()
		l.tx.Unlock()
		if room || !space {
			l.qp.Disarm()
			return false
		}
	}
	return true
}

func (l *lane) disarm() {
	l.rx.Lock()
	l.qp.Disarm()
	l.rx.Unlock()
}

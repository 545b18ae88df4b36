// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"errors"
	"sync/atomic"

	"pno/offload"
)

// segment is received payload. It lies in the ring until it is read, or until
// the ring needs the room: then it is copied to private memory (spilled), so
// that a slow reader never stops the others.
type segment struct {
	data   []byte   // unread; guarded by the connection's lock
	inRing bool     // guarded by the connection's lock
	next   *segment // of the connection
	conn   *Conn

	// Of the lane, while in the ring.
	younger *segment
	start   uint64
	drain   uint32
	done    atomic.Bool // read: its ring space can be given back
}

// look drains the lane unless somebody else is at it.
func (l *lane) look() {
	if l.rx.TryLock() {
		l.drain()
		l.rx.Unlock()
	}
}

// drain takes in what the DPU has sent: headers only, payloads stay where they
// are. It reports whether records came. rx is locked.
//
// Before what is held fills half of the ring, the oldest payloads have to make
// room. Those that this very drain brought have not had their chance to be
// read, so the drain stops instead; the poller lets the readers run and drains
// again.
func (l *lane) drain() bool {
	if l.broken || l.s.lost.Load() || !l.qp.Moved() {
		return false
	}
	l.drains++
	n := uint64(0)
	for l.makeRoom() {
		rec, payload, ok, err := l.qp.Next()
		if err == nil && ok {
			n++
			err = l.dispatch(rec, payload)
		}
		if err != nil {
			l.s.counters.inc(statSessionHostile)
			l.broken = true
			go l.s.lose(err.Error()) // it takes locks that are held here
			return true
		}
		if !ok {
			break
		}
	}
	l.giveBack()
	if n > 0 {
		l.s.counters.add(statRecordsRx, n)
	}
	return n > 0
}

// makeRoom spills payloads that former drains brought. False: leave the rest of
// the ring for the next drain.
func (l *lane) makeRoom() bool {
	half := uint64(l.s.layout.D2HSize) / 2
	for l.qp.Held() > half {
		l.giveBack()
		g := l.oldest
		if g == nil || l.qp.Held() <= half {
			break
		}
		if g.drain == l.drains {
			return false
		}
		g.conn.spill(g)
	}
	return true
}

// hold keeps a payload in the ring.
func (l *lane) hold(c *Conn, payload []byte) *segment {
	g := l.spare
	if g == nil {
		g = new(segment)
	} else {
		l.spare = g.younger
	}
	g.younger, g.next = nil, nil
	g.conn, g.data, g.inRing, g.drain = c, payload, true, l.drains
	g.start = l.qp.Seen() - uint64(offload.RecordSpace(len(payload)))
	g.done.Store(false)
	if l.newest != nil {
		l.newest.younger = g
	} else {
		l.oldest = g
	}
	l.newest = g
	return g
}

// giveBack returns ring space, in order.
func (l *lane) giveBack() {
	for g := l.oldest; g != nil && g.done.Load(); g = l.oldest {
		if l.oldest = g.younger; l.oldest == nil {
			l.newest = nil
		}
		if g.conn == nil { // spilled: the connection still has it
			continue
		}
		g.conn, g.data = nil, nil
		g.younger, l.spare = l.spare, g
	}
	if l.oldest != nil {
		l.qp.ReleaseTo(l.oldest.start)
	} else {
		l.qp.Release()
	}
}

var (
	errShortRecord = errors.New("the DPU sent a record that is too short")
	errUnknown     = errors.New("the DPU sent an unknown record")
	errBadHandle   = errors.New("the DPU chose an impossible handle")
	errUninvited   = errors.New("the DPU sent more connections than were asked for")
	errGap         = errors.New("the DPU sent data out of order")
	errTooMuch     = errors.New("the DPU sent data beyond the receive window")
)

// dispatch acts on one record. An error ends the session.
func (l *lane) dispatch(rec offload.Record, payload []byte) error {
	switch {
	case rec.Op == offload.OpReply:
		l.s.replied(rec, payload)
		return nil
	case rec.Op == offload.OpAccept:
		return l.accept(rec, payload)
	case rec.Op < offload.OpReply || rec.Op > offload.OpRevoked:
		return errUnknown
	}
	e := l.lookup(rec.Sock)
	switch {
	case e == nil:
		l.s.counters.inc(statRecordsStale)
		return nil
	case e.conn == nil:
		if rec.Op == offload.OpError {
			e.lis.l.failed(errnoOf(rec.Seq))
		}
		return nil
	}
	return e.conn.record(l, rec, payload)
}

func (l *lane) lookup(handle uint32) *entry {
	if handle&offload.HandleHost != 0 {
		return l.own.get(handle)
	}
	return l.dpu.get(handle)
}

// accept takes in a connection that a listener's queue gets.
func (l *lane) accept(rec offload.Record, payload []byte) error {
	pair, err := offload.GetAddrPair(payload)
	switch {
	case err != nil:
		return errShortRecord
	case rec.Sock&offload.HandleHost != 0:
		return errBadHandle
	}
	e := l.own.get(rec.Seq)
	if e == nil || e.lis == nil {
		l.s.counters.inc(statRecordsStale) // closed: the DPU resets it
		return nil
	}
	c := newConn(l, stateOpen)
	c.entry.handle = rec.Sock
	c.setAddrs(pair)
	return e.lis.park(c)
}

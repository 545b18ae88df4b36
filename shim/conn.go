// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"net"
	"sync"
	"syscall"
	"time"

	"pno/offload"
)

type state uint8

const (
	stateConnecting state = iota
	stateOpen             // each half may be shut
	stateDead             // reset or lost: err once, then end of file or EPIPE
)

// Conn is an offloaded connection. Its methods may be called by any goroutine,
// as those of package net's.
type Conn struct {
	l     *lane
	entry entry

	readers sync.Mutex // one Read at a time
	writers sync.Mutex // one Write at a time
	rwake   chan struct{}
	wwake   chan struct{}

	mu       sync.Mutex // guards what follows
	state    state
	closed   bool
	shutRd   bool
	shutWr   bool
	fin      bool // the peer's end follows what has been received
	noLinger bool // SetLinger(0): Close resets
	rwaiting bool // a Read waits for rwake
	wwaiting bool
	ringFull bool // on the lane's list of waiters
	err      error

	rxRead, rxNext, rxTold uint64 // read; received; told to the DPU as read
	txSent, txAcked        uint64
	head, tail             *segment

	rdl, wdl deadline

	local, peer *net.TCPAddr
	dialled     chan error // of a connection that is being made
	from        *binding   // of one that waits to be accepted
}

var _ net.Conn = (*Conn)(nil)

func newConn(l *lane, st state) *Conn {
	c := &Conn{l: l, state: st, rwake: make(chan struct{}, 1), wwake: make(chan struct{}, 1)}
	c.entry.conn = c
	return c
}

func (c *Conn) setAddrs(p offload.AddrPair) { c.local, c.peer = tcpAddr(p.Local), tcpAddr(p.Peer) }

// LocalAddr is the connection's address at the DPU, a *net.TCPAddr.
func (c *Conn) LocalAddr() net.Addr { return c.local }

// RemoteAddr is the peer's address, a *net.TCPAddr.
func (c *Conn) RemoteAddr() net.Addr { return c.peer }

func (c *Conn) fail(op string, err error) error {
	return opError(op, "tcp", c.LocalAddr(), c.RemoteAddr(), err)
}

// wakeReader lets a Read that waits look again. mu is locked.
func (c *Conn) wakeReader() {
	if c.rwaiting {
		c.rwaiting = false
		c.rwake <- struct{}{}
	}
}

func (c *Conn) wakeWriter() {
	if c.wwaiting {
		c.wwaiting = false
		c.wwake <- struct{}{}
	}
}

// record takes in a record of the DPU's. An error ends the session.
func (c *Conn) record(l *lane, rec offload.Record, payload []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		l.s.counters.inc(statRecordsStale)
		return nil
	}
	switch rec.Op {
	case offload.OpData:
		c.acked(rec.Ack)
		return c.received(l, rec, payload)
	case offload.OpTxAck:
		c.acked(rec.Ack)
	case offload.OpConnected:
		return c.connected(payload)
	case offload.OpFin:
		c.acked(rec.Ack)
		if rec.Seq != uint32(c.rxNext) && !c.shutRd {
			return errGap
		}
		c.fin = true
		c.wakeReader()
	case offload.OpError:
		if rec.Seq&offload.ErrnoRedirect != 0 && c.state == stateConnecting {
			c.answer(&redirect{int(rec.Seq & 0xff)})
		} else {
			c.dieLocked(errnoOf(rec.Seq))
		}
	}
	return nil
}

// received puts a payload at the end of the stream.
func (c *Conn) received(l *lane, rec offload.Record, payload []byte) error {
	n := uint64(len(payload))
	switch {
	case c.state == stateDead || n == 0:
		return nil
	case rec.Seq != uint32(c.rxNext) || c.fin || c.state != stateOpen:
		return errGap
	case c.rxNext+n-c.rxTold > uint64(l.s.layout.RxWindow):
		return errTooMuch
	}
	g := l.hold(c, payload)
	if c.tail != nil {
		c.tail.next = g
	} else {
		c.head = g
	}
	c.tail = g
	c.rxNext += n
	c.wakeReader()
	return nil
}

// acked takes in how much the DPU has of what was sent.
func (c *Conn) acked(ack uint32) {
	if n := int32(ack - uint32(c.txAcked)); n > 0 && uint64(n) <= c.txSent-c.txAcked {
		c.txAcked += uint64(n)
		if c.window() >= uint64(c.l.s.layout.TxWindow)/4 && !c.ringFull {
			c.wakeWriter()
		}
	}
}

// window is how many bytes may be sent.
func (c *Conn) window() uint64 {
	return uint64(c.l.s.layout.TxWindow) - (c.txSent - c.txAcked)
}

// roomAgain is told that the ring has room again.
func (c *Conn) roomAgain() {
	c.mu.Lock()
	c.ringFull = false
	c.wakeWriter()
	c.mu.Unlock()
}

// die ends the connection by an error.
func (c *Conn) die(err error) {
	c.mu.Lock()
	c.dieLocked(err)
	c.mu.Unlock()
}

func (c *Conn) dieLocked(err error) {
	if c.state == stateDead || c.closed {
		return
	}
	if c.state == stateConnecting {
		c.answer(err)
	} else {
		c.l.s.counters.inc(statResets)
	}
	c.state, c.err = stateDead, err
	c.wakeReader()
	c.wakeWriter()
}

// takeErr returns the error of a dead connection once, and then what follows.
func (c *Conn) takeErr(then error) error {
	if err := c.err; err != nil {
		c.err = nil
		return err
	}
	return then
}

// Close closes the connection: orderly, or by a reset if received bytes were
// not read or after SetLinger(0), as the kernel does.
func (c *Conn) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return c.fail("close", net.ErrClosed)
	}
	c.closeLocked()
	c.mu.Unlock()
	return nil
}

func (c *Conn) closeLocked() {
	var flags uint8
	if c.state == stateOpen && (c.noLinger || c.rxRead != c.rxNext) {
		flags = offload.FlagCloseReset
	}
	c.closed = true
	c.rdl.stop()
	c.wdl.stop()
	for c.head != nil {
		c.dropHead()
	}
	c.wakeReader()
	c.wakeWriter()
	c.release(flags)
	c.l.s.counters.inc(statSocketsClosed)
}

// release gives up the handle.
func (c *Conn) release(flags uint8) {
	c.l.table(c.entry.handle).drop(&c.entry)
	if !c.l.s.lost.Load() {
		c.l.control(offload.OpClose, flags, c.entry.handle, uint32(c.txSent), uint32(c.rxRead), nil)
	}
}

func (l *lane) table(handle uint32) *table {
	if handle&offload.HandleHost != 0 {
		return &l.own
	}
	return &l.dpu
}

// CloseRead shuts down the receiving half.
func (c *Conn) CloseRead() error { return c.shutdown(0) }

// CloseWrite shuts down the sending half: the peer reads to the end.
func (c *Conn) CloseWrite() error { return c.shutdown(1) }

func (c *Conn) shutdown(how uint8) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		return c.fail("close", net.ErrClosed)
	case c.state == stateDead:
		return c.fail("close", syscall.ENOTCONN)
	}
	if how == 0 {
		c.shutRd = true
		c.wakeReader()
	} else {
		if c.shutWr {
			return nil
		}
		c.shutWr = true
		c.wakeWriter()
	}
	c.l.control(offload.OpShutdown, how, c.entry.handle, uint32(c.txSent), uint32(c.rxRead), nil)
	c.rxTold = c.rxRead
	return nil
}

// deadline is one direction's, guarded by the connection's lock.
type deadline struct {
	at    time.Time
	timer *time.Timer
}

func (d *deadline) passed() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

func (d *deadline) stop() {
	if d.timer != nil {
		d.timer.Stop()
	}
}

// set returns how long to wait, 0 if there is nothing to wait for.
func (d *deadline) set(t time.Time) time.Duration {
	d.at = t
	d.stop()
	if t.IsZero() {
		return 0
	}
	return max(time.Until(t), 0)
}

// SetDeadline sets both deadlines.
func (c *Conn) SetDeadline(t time.Time) error {
	if err := c.SetReadDeadline(t); err != nil {
		return err
	}
	return c.SetWriteDeadline(t)
}

// SetReadDeadline bounds Reads, those that wait already too.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return c.fail("set", net.ErrClosed)
	}
	wait := c.rdl.set(t)
	switch {
	case c.rdl.passed():
		c.wakeReader()
	case wait == 0:
	case c.rdl.timer == nil:
		c.rdl.timer = time.AfterFunc(wait, c.readDue)
	default:
		c.rdl.timer.Reset(wait)
	}
	return nil
}

func (c *Conn) readDue() {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed || c.rdl.at.IsZero():
	case c.rdl.passed():
		c.wakeReader()
	default: // early, or set anew meanwhile
		c.rdl.timer.Reset(time.Until(c.rdl.at))
	}
}

// SetWriteDeadline bounds Writes, those that wait already too.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return c.fail("set", net.ErrClosed)
	}
	wait := c.wdl.set(t)
	switch {
	case c.wdl.passed():
		c.wakeWriter()
	case wait == 0:
	case c.wdl.timer == nil:
		c.wdl.timer = time.AfterFunc(wait, c.writeDue)
	default:
		c.wdl.timer.Reset(wait)
	}
	return nil
}

func (c *Conn) writeDue() {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed || c.wdl.at.IsZero():
	case c.wdl.passed():
		c.wakeWriter()
	default:
		c.wdl.timer.Reset(time.Until(c.wdl.at))
	}
}

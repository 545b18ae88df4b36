// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"

	"pno/offload"
)

// Read reads what has been received. What was read is reported to the DPU by
// the next Write, or once a quarter of the window has gathered.
func (c *Conn) Read(b []byte) (int, error) {
	c.readers.Lock()
	n, err := c.read(b)
	c.readers.Unlock()
	if err != nil {
		err = c.fail("read", err)
	}
	return n, err
}

func (c *Conn) read(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for looked := false; ; {
		if c.closed {
			return 0, net.ErrClosed
		}
		if c.rdl.passed() {
			return 0, os.ErrDeadlineExceeded
		}
		if len(b) == 0 {
			return 0, nil
		}
		if n := c.take(b); n > 0 {
			c.consumed(n)
			return n, nil
		}
		switch {
		case c.state == stateDead:
			return 0, c.takeErr(io.EOF)
		case c.fin || c.shutRd:
			return 0, io.EOF
		case !looked:
			// It may lie in the ring already.
			looked = true
			c.mu.Unlock()
			c.l.look()
			c.mu.Lock()
			continue
		}
		c.rwaiting = true
		c.mu.Unlock()
		<-c.rwake
		c.mu.Lock()
	}
}

// take copies received bytes: the only copy on the way in.
func (c *Conn) take(b []byte) (n int) {
	for g := c.head; g != nil && n < len(b); g = c.head {
		k := copy(b[n:], g.data)
		n += k
		if k < len(g.data) {
			g.data = g.data[k:]
			break
		}
		c.dropHead()
	}
	c.rxRead += uint64(n)
	return n
}

// dropHead forgets the oldest segment.
func (c *Conn) dropHead() {
	g := c.head
	if c.head = g.next; c.head == nil {
		c.tail = nil
	}
	if g.inRing {
		g.done.Store(true) // the lane has it back now
	}
}

// consumed counts and reports what was read.
func (c *Conn) consumed(n int) {
	s := c.l.s
	s.counters.inc(statCallsRx)
	s.counters.add(statBytesRx, uint64(n))
	if c.state == stateOpen && c.rxRead-c.rxTold >= uint64(s.layout.RxWindow)/4 {
		c.rxTold = c.rxRead
		c.l.control(offload.OpRxAck, 0, c.entry.handle, 0, uint32(c.rxRead), nil)
	}
}

// spill moves a segment that still lies in the ring to private memory. The
// lane's rx is locked.
func (c *Conn) spill(g *segment) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if g.done.Load() {
		return
	}
	c.l.s.counters.add(statRxSpilledBytes, uint64(len(g.data)))
	g.data, g.inRing, g.conn = slices.Clone(g.data), false, nil
	g.done.Store(true)
}

// Write hands b to the DPU. It returns once all of b is in the ring, which is
// before the peer has it.
func (c *Conn) Write(b []byte) (int, error) {
	c.writers.Lock()
	n, err := c.write(b)
	c.writers.Unlock()
	if err != nil {
		err = c.fail("write", err)
	}
	return n, err
}

func (c *Conn) write(b []byte) (n int, err error) {
	c.mu.Lock()
	for looked := false; ; {
		if err = c.mayWrite(); err != nil {
			c.mu.Unlock()
			return n, err
		}
		k, ring := c.push(b[n:])
		n += k
		if n == len(b) {
			c.mu.Unlock()
			c.l.ringBell(ring)
			c.l.s.counters.inc(statCallsTx)
			return n, nil
		}
		// First the ring is looked at: the acknowledgement may be there.
		wait := looked || c.ringFull
		c.wwaiting = wait
		c.mu.Unlock()
		c.l.ringBell(ring)
		if wait {
			<-c.wwake
		} else {
			c.l.look()
			looked = true
		}
		c.mu.Lock()
	}
}

// mayWrite tells why nothing can be written.
func (c *Conn) mayWrite() error {
	switch {
	case c.closed:
		return net.ErrClosed
	case c.wdl.passed():
		return os.ErrDeadlineExceeded
	case c.state == stateDead:
		return c.takeErr(syscall.EPIPE)
	case c.shutWr:
		return syscall.EPIPE
	}
	return nil
}

// push sends as much of b as window and ring allow: the only copy on the way
// out. It tells whether the doorbell has to be rung.
func (c *Conn) push(b []byte) (n int, ring bool) {
	l := c.l
	l.tx.Lock()
	for n < len(b) {
		window := c.window()
		if window == 0 {
			l.s.counters.inc(statTxWindowFull)
			break
		}
		part := b[n:]
		if uint64(len(part)) > window {
			part = part[:window]
		}
		k := l.data(c.entry.handle, uint32(c.txSent), uint32(c.rxRead), part, n+len(part) < len(b))
		if k == 0 {
			c.waitForRoom()
			break
		}
		c.txSent += uint64(k)
		n += k
	}
	if n > 0 {
		c.rxTold = c.rxRead
		l.s.counters.add(statBytesTx, uint64(n))
		ring = l.qp.Publish()
	}
	l.tx.Unlock()
	return n, ring
}

// waitForRoom puts the connection on the list of those to wake. mu and the
// lane's tx are locked.
func (c *Conn) waitForRoom() {
	if c.ringFull {
		return
	}
	c.ringFull = true
	c.l.waiters = append(c.l.waiters, c)
	c.l.s.counters.inc(statTxRingFull)
	c.l.want()
}

// buffers are for copies between connections and other readers and writers.
var buffers = sync.Pool{New: func() any { return new([offload.MaxPayload]byte) }}

// ReadFrom sends all that r gives, from a buffer that is not made for it each
// time.
func (c *Conn) ReadFrom(r io.Reader) (n int64, err error) {
	b := buffers.Get().(*[offload.MaxPayload]byte)
	defer buffers.Put(b)
	for {
		k, rerr := r.Read(b[:])
		if k > 0 {
			w, werr := c.Write(b[:k])
			n += int64(w)
			if werr != nil {
				return n, werr
			}
		}
		if rerr == io.EOF {
			return n, nil
		}
		if rerr != nil {
			return n, rerr
		}
	}
}

// WriteTo writes all that is received to w, from such a buffer. Payload is not
// handed out in the ring: a slow w would keep the ring's room from others.
func (c *Conn) WriteTo(w io.Writer) (n int64, err error) {
	b := buffers.Get().(*[offload.MaxPayload]byte)
	defer buffers.Put(b)
	for {
		k, rerr := c.Read(b[:])
		if k > 0 {
			m, werr := w.Write(b[:k])
			n += int64(m)
			switch {
			case werr != nil:
				return n, werr
			case m < k:
				return n, io.ErrShortWrite
			}
		}
		if rerr == io.EOF {
			return n, nil
		}
		if rerr != nil {
			return n, rerr
		}
	}
}

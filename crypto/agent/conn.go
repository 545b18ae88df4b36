// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"errors"
	"io"
	"net"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"pno/crypto/client"
	"pno/crypto/signing"
)

// conn is a connection of the provider in one process.
type conn struct {
	a    *Agent
	c    net.Conn
	peer unix.Ucred
	name string

	mu       sync.Mutex
	ready    []done
	writing  bool // somebody writes, until there is nothing left
	inflight int
	closed   bool
	open     sync.WaitGroup // operations

	// Of who writes.
	packet []byte
	spare  []done
	until  time.Time // the deadline of writes
}

// done is an operation that has ended.
type done struct {
	id     uint64
	status signing.Status
	micros uint32
	data   []byte
}

const (
	helloWait = 5 * time.Second
	writeWait = time.Second
)

func (c *conn) close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	_ = c.c.Close() // whatever it says, it is over
}

// refuse says why and closes.
func (c *conn) refuse(id uint64, errno syscall.Errno, text string) {
	_ = c.c.SetWriteDeadline(time.Now().Add(writeWait))
	_, _ = c.c.Write(AppendRefused(nil, id, int32(errno), text)) // a courtesy
	_ = c.c.Close()
}

// serve runs until the connection ends, and every operation on it with it.
func (c *conn) serve() {
	log := c.a.cfg.Log
	if err := c.hello(); err != nil {
		c.a.stats.Refused.Add(1)
		c.a.refused.tell("key agent refused a connection", "pid", c.peer.Pid, "uid", c.peer.Uid, "reason", err)
		return
	}
	// The kernel's word for who that is; what the process takes its pid for counts
	// in its own pid namespace only.
	log.Debug("key agent connected", "pid", c.peer.Pid, "program", c.name)
	err := c.read()
	if errors.Is(err, ErrMessage) {
		c.a.stats.Malformed.Add(1)
		log.Warn("key agent ended a connection", "pid", c.peer.Pid, "program", c.name, "reason", err)
	}
	c.close()
	c.open.Wait()
}

// hello takes the first message.
func (c *conn) hello() error {
	_ = c.c.SetReadDeadline(time.Now().Add(helloWait))
	buf := make([]byte, MaxPacket+1)
	n, err := c.c.Read(buf)
	if err != nil || n == 0 {
		_ = c.c.Close()
		return errors.Join(errors.New("no HELLO"), err)
	}
	msg, rest, err := Next(buf[:n])
	h, ok := msg.(*Hello)
	switch {
	case err != nil:
		c.refuse(0, syscall.EPROTO, err.Error())
		return err
	case !ok || len(rest) > 0:
		c.refuse(0, syscall.EPROTO, "want HELLO, alone")
		return errors.New("no HELLO")
	}
	c.name = text(bytes.ToValidUTF8(h.Name[:], []byte("?")))
	_ = c.c.SetReadDeadline(time.Time{})
	_ = c.c.SetWriteDeadline(time.Now().Add(writeWait))
	_, err = c.c.Write(AppendWelcome(nil, h.ID, uint32(c.a.cfg.MaxInflight), uint32(c.a.cfg.Client.Timeout().Microseconds())))
	return err
}

// read takes operations until the connection ends.
func (c *conn) read() error {
	buf := make([]byte, MaxPacket+1)
	for {
		n, err := c.c.Read(buf)
		if err != nil {
			return err
		}
		if n == 0 {
			return io.EOF
		}
		if n > MaxPacket {
			return errors.Join(errors.New("packet too long"), ErrMessage)
		}
		for packet := buf[:n]; len(packet) > 0; {
			var msg any
			if msg, packet, err = Next(packet); err != nil {
				return err
			}
			op, ok := msg.(*Op)
			if !ok {
				return errors.Join(errors.New("not an operation"), ErrMessage)
			}
			c.begin(op)
		}
	}
}

// begin starts an operation, or answers it at once.
func (c *conn) begin(op *Op) {
	start := time.Now()
	c.mu.Lock()
	full := c.inflight >= c.a.cfg.MaxInflight
	if !full {
		c.inflight++
	}
	c.mu.Unlock()
	if full {
		// Not here: it may take a client that does not read a second.
		c.open.Go(func() { c.finish(done{id: op.ID, status: signing.Overloaded}) })
		return
	}
	var deadline time.Time // none: the client's limit
	if op.TimeoutMicros > 0 {
		deadline = start.Add(time.Duration(op.TimeoutMicros) * time.Microsecond)
	}
	req := client.Op{Request: signing.Request{Key: op.Key, Scheme: signing.Scheme(op.Scheme), Input: signing.Input(op.Input), Data: bytes.Clone(op.Data)}}
	c.open.Add(1)
	c.a.tasks.do(&task{conn: c, id: op.ID, start: start, deadline: deadline, op: req})
}

// run has an operation done, and ends it.
func (t *task) run() {
	c := t.conn
	defer c.open.Done()
	out, err := c.a.cfg.Client.Do(t.deadline, &t.op)
	status := signing.StatusOf(err)
	if err != nil {
		c.a.cfg.Log.Debug("operation failed", "program", c.name, "key", t.op.Key.String(), "status", status.String(), "reason", err)
	}
	c.mu.Lock()
	c.inflight--
	c.mu.Unlock()
	took := time.Since(t.start)
	c.a.latency.Observe(took.Seconds())
	c.finish(done{t.id, status, uint32(min(took.Microseconds(), 1<<32-1)), out})
}

// finish has a result written: by the one who calls, or by one who writes already.
// So an operation alone wakes nobody for its result, and many go together. A client
// that asks on and does not read is closed: after a second, or when more waits than
// its open operations can account for.
func (c *conn) finish(d done) {
	c.a.stats.Operations[d.status&15].Add(1)
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return
	}
	c.ready = append(c.ready, d)
	if c.writing {
		flood := len(c.ready) > 4*c.a.cfg.MaxInflight
		c.mu.Unlock()
		if flood {
			c.close()
		}
		return
	}
	c.writing = true
	alone := c.inflight == 0
	c.mu.Unlock()
	if !alone {
		runtime.Gosched() // whoever is about to finish, may
	}
	c.write()
}

// write sends what has come up, as many results in a packet as fit.
func (c *conn) write() {
	for {
		c.mu.Lock()
		ready := c.ready
		if c.closed || len(ready) == 0 {
			c.writing = false
			c.mu.Unlock()
			return
		}
		c.ready = c.spare[:0]
		c.mu.Unlock()
		for i, d := range ready {
			c.packet = AppendResult(c.packet, d.id, d.status, d.micros, d.data)
			if i < len(ready)-1 && len(c.packet)+ResultSize(ready[i+1].data) <= MaxPacket {
				continue
			}
			if err := c.send(); err != nil {
				c.close()
				return
			}
		}
		clear(ready)
		c.spare = ready
	}
}

// send writes the packet. A deadline serves the writes of a second: to set one may
// wake a thread.
func (c *conn) send() error {
	if now := time.Now(); c.until.Before(now.Add(writeWait)) {
		c.until = now.Add(2 * writeWait)
		_ = c.c.SetWriteDeadline(c.until)
	}
	_, err := c.c.Write(c.packet)
	c.packet = c.packet[:0]
	return err
}

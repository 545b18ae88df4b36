// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pno/crypto/signing"
)

// reader is a connection whose other end counts the results it is sent.
type reader struct {
	net.Conn
	t         *testing.T
	before    func() // each write; may be nil
	busy      atomic.Bool
	closed    atomic.Bool
	writes    int
	deadlines int
	got       map[uint64]int
}

func (c *reader) SetWriteDeadline(time.Time) error { c.deadlines++; return nil }
func (c *reader) Close() error                     { c.closed.Store(true); return nil }

func (c *reader) Write(b []byte) (int, error) {
	if c.busy.Swap(true) {
		c.t.Error("two write at once")
	}
	defer c.busy.Store(false)
	if c.before != nil {
		c.before()
	}
	c.writes++
	for rest := b; len(rest) > 0; {
		msg, next, err := Next(rest)
		if err != nil {
			return 0, err
		}
		c.got[msg.(*Result).ID]++
		rest = next
	}
	return len(b), nil
}

func newConn(t *testing.T, inflight int) (*conn, *reader) {
	to := &reader{t: t, got: map[uint64]int{}}
	return &conn{a: &Agent{cfg: Config{MaxInflight: inflight}}, c: to}, to
}

// Who has a result has written it when finish returns: nobody is woken for it.
func TestFinishWrites(t *testing.T) {
	c, to := newConn(t, 4)
	for id := range uint64(50) {
		c.finish(done{id: id, status: signing.OK, data: make([]byte, 64)})
		if to.writes != int(id)+1 || to.got[id] != 1 || c.writing {
			t.Fatalf("result %d: %d writes, %v", id, to.writes, to.got)
		}
	}
	if to.deadlines == 50 {
		t.Error("each write has a deadline of its own")
	}
}

// However many finish at once, each result goes out once, and results that come up
// while another is written go together.
func TestFinishTogether(t *testing.T) {
	const many, each = 8, 500
	c, to := newConn(t, many*each)
	c.inflight = 1 // more to come
	to.before = runtime.Gosched
	var all sync.WaitGroup
	for g := range uint64(many) {
		all.Go(func() {
			for i := range uint64(each) {
				c.finish(done{id: g*each + i, status: signing.OK, data: make([]byte, 64)})
			}
		})
	}
	all.Wait()
	if len(to.got) != many*each || c.writing || len(c.ready) != 0 {
		t.Errorf("%d of %d results; %d are left", len(to.got), many*each, len(c.ready))
	}
	for id, n := range to.got {
		if n != 1 {
			t.Errorf("result %d was sent %d times", id, n)
		}
	}
}

// A client that does not read keeps one of its own operations, and is closed when
// its results are more than it may have open.
func TestFinishStuck(t *testing.T) {
	const inflight = 3
	c, to := newConn(t, inflight)
	in, goOn := make(chan struct{}), make(chan struct{})
	to.before = func() { in <- struct{}{}; <-goOn }
	first := make(chan struct{})
	go func() {
		defer close(first)
		c.finish(done{id: 0, status: signing.OK})
	}()
	<-in
	for id := range uint64(4 * inflight) {
		c.finish(done{id: id + 1, status: signing.OK})
	}
	if to.closed.Load() {
		t.Error("closed too early")
	}
	c.finish(done{id: 99, status: signing.OK})
	if !to.closed.Load() {
		t.Error("it is not closed")
	}
	close(goOn)
	<-first
	if to.writes != 1 {
		t.Errorf("%d writes to a client that is closed", to.writes)
	}
}

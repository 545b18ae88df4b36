// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"pno/internal/attach"
	"pno/offload"
)

// session is one attachment: the shared memory and what lives in it. It is
// never closed: its memory and descriptors go when nothing refers to it any
// more, for a connection that was lost may still hold received data.
type session struct {
	c        *client
	id       uint64
	layout   offload.Layout
	memory   *offload.HostMemory
	memfd    int
	intr     int // interrupt of channel 0
	sleeper  *sleeper
	counters *counters
	policy   policy
	spin     time.Duration
	lanes    []*lane

	lost atomic.Bool
	done chan struct{} // closed when lost

	turn atomic.Uint32 // of the shards, for connections that are made

	connMu sync.Mutex
	conn   *attach.Conn // guarded by connMu

	callMu sync.Mutex
	tag    uint32
	calls  map[uint32]chan reply
}

// reply is the answer to a request that waits for it.
type reply struct {
	errno   uint32
	payload []byte
}

// newSession maps what came with WELCOME. It takes the packet's descriptors
// over once it cannot fail any more.
func newSession(c *client, conn *attach.Conn, w *attach.Welcome, p *attach.Packet) (*session, error) {
	l := offload.Layout{Channels: int(w.Channels), Shards: int(w.Shards), H2DSize: w.H2DSize, D2HSize: w.D2HSize,
		RxWindow: w.RxWindow, TxWindow: w.TxWindow}
	if err := l.Check(); err != nil {
		return nil, fmt.Errorf("hostd's session: %w", err)
	}
	var st syscall.Stat_t
	switch {
	case w.TotalSize != l.TotalSize() || w.ChannelStride != l.ChannelStride():
		return nil, fmt.Errorf("hostd's session has another geometry: %w", offload.ErrLayout)
	case len(p.FDs) != 2+l.Shards:
		return nil, fmt.Errorf("hostd sent %d descriptors for %d shards: %w", len(p.FDs), l.Shards, attach.ErrMessage)
	}
	if err := syscall.Fstat(p.FDs[0], &st); err != nil || uint64(st.Size) < l.TotalSize() {
		return nil, fmt.Errorf("session memory of %d bytes (%v): %w", st.Size, err, offload.ErrLayout)
	}
	mem, err := syscall.Mmap(p.FDs[0], 0, int(l.TotalSize()), syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED|syscall.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("map session memory: %w", err)
	}
	memory, err := offload.NewHostMemory(mem, l)
	if err != nil {
		_ = syscall.Munmap(mem)
		return nil, err
	}
	s := &session{
		c: c, id: w.Session, layout: l, memory: memory, counters: (*counters)(memory.Counters()),
		policy: newPolicy(w), spin: min(time.Duration(w.SpinNanos), maxSpin),
		done: make(chan struct{}), conn: conn, calls: map[uint32]chan reply{},
	}
	fds := p.FDs
	p.FDs = nil
	s.memfd, s.intr = fds[0], fds[len(fds)-1]
	runtime.AddCleanup(s, func(fds []int) {
		_ = syscall.Munmap(mem)
		for _, fd := range fds {
			_ = syscall.Close(fd)
		}
	}, fds)
	for i := range l.Shards {
		qp, err := memory.QP(0, i)
		if err != nil {
			panic(err) // the layout was checked
		}
		s.lanes = append(s.lanes, &lane{s: s, shard: i, qp: qp, bell: fds[1+i]})
	}
	if s.sleeper, err = newSleeper(s.intr); err != nil {
		return nil, err
	}
	s.counters.inc(statChannels)
	return s, nil
}

// run starts what works for the session until it is lost.
func (s *session) run() {
	go s.poll()
	go s.watch()
}

// watch waits for the end of the connection to hostd, which means that hostd
// has ended: the data path goes on, and the next hostd is told of the session.
func (s *session) watch() {
	for {
		p, err := s.conn.Recv()
		if err == nil { // hostd never speaks unasked
			p.Close()
			s.lose("hostd broke the attach protocol")
			return
		}
		if s.lost.Load() || !s.readopt() {
			return
		}
	}
}

// readopt finds the next hostd; false: the session is over.
func (s *session) readopt() bool {
	tick := time.NewTicker(retryEvery)
	defer tick.Stop()
	for {
		conn, p, err := s.c.hello(s.id, s.memfd, s.intr)
		if err == nil {
			p.Close()
			s.connMu.Lock()
			s.conn.Close()
			s.conn = conn
			s.connMu.Unlock()
			if s.lost.Load() {
				conn.Close()
				return false
			}
			return true
		}
		if errors.Is(err, syscall.ESTALE) {
			s.lose("the new hostd does not know it")
			return false
		}
		select {
		case <-tick.C:
		case <-s.done:
			return false
		}
	}
}

// lose ends the session: every connection of it is reset.
func (s *session) lose(why string) {
	if s.lost.Swap(true) {
		return
	}
	s.counters.inc(statSessionLost)
	slog.Error("pno: the session with the DPU is over, its connections are reset", "reason", why)
	close(s.done)
	s.connMu.Lock()
	s.conn.Close()
	s.connMu.Unlock()
	listeners := map[*Listener]bool{}
	for _, l := range s.lanes {
		l.rx.Lock() // whoever drains finishes; nobody begins any more
		//lint:ignore SA2001 the lock is all that is wanted
		l.rx.Unlock()
		each := func(e *entry) {
			if e.conn != nil {
				e.conn.die(syscall.ECONNRESET)
			} else {
				listeners[e.lis.l] = true
			}
		}
		l.own.each(each)
		l.dpu.each(each)
	}
	var list []*Listener
	for l := range listeners {
		list = append(list, l)
	}
	s.c.lose(list)
	s.kick()
}

// kick wakes the poller.
func (s *session) kick() {
	one := [8]byte{0: 1}
	_, _ = syscall.Write(s.intr, one[:]) // full: it is awake already
	runtime.KeepAlive(s)
}

// replyTimeout is as long as the C shim's.
const replyTimeout = 30 * time.Second

// ask sends a request on a lane and waits for its Reply: what it carries, or
// the DPU's errno.
func (s *session) ask(ctx context.Context, l *lane, op offload.Op, sock, ack uint32, payload []byte) ([]byte, error) {
	answer := make(chan reply, 1)
	s.callMu.Lock()
	if s.tag++; s.tag == 0 {
		s.tag++
	}
	tag := s.tag
	s.calls[tag] = answer
	s.callMu.Unlock()
	defer func() {
		s.callMu.Lock()
		delete(s.calls, tag)
		s.callMu.Unlock()
	}()
	l.control(op, 0, sock, tag, ack, payload)
	timer := time.NewTimer(replyTimeout)
	defer timer.Stop()
	select {
	case r := <-answer:
		if r.errno != 0 {
			return nil, errnoOf(r.errno)
		}
		return r.payload, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-s.done:
		return nil, syscall.ENETDOWN
	case <-timer.C:
		return nil, syscall.ETIMEDOUT
	}
}

// replied hands a Reply to who waits for it, if anybody does.
func (s *session) replied(rec offload.Record, payload []byte) {
	s.callMu.Lock()
	defer s.callMu.Unlock()
	if answer := s.calls[rec.Seq]; answer != nil {
		delete(s.calls, rec.Seq)
		answer <- reply{rec.Ack, append([]byte(nil), payload...)}
	}
}

// checkStatus ends the session if hostd says that the DPU is gone.
func (s *session) checkStatus() bool {
	if s.memory.Status() == offload.StatusUp {
		return true
	}
	s.lose("hostd says that the DPU is gone")
	return false
}

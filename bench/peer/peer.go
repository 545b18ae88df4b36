// SPDX-License-Identifier: Apache-2.0

// Package peer is a DPU that costs nothing: behind the real control link and
// the real rings it answers at once, with made-up clients and a made-up back
// end in place of a network stack. What a proxy reaches with it is the host's
// ceiling: shim, rings and hostd, with nothing to wait for.
//
// A Peer is one shard and one goroutine (Run), which polls and never sleeps.
// The control link's goroutine hands it work under mu. Who wants to say when
// the DPU gets on calls Turn instead of Run.
package peer

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"pno/offload"
	"pno/offload/shm"
)

// Peer implements control.Backend.
type Peer struct {
	request []byte
	conns   int    // clients of each listener
	answer  []byte // of the back end; nil: there is none

	answered atomic.Uint64

	mu       sync.Mutex
	sessions map[uint64]*session // guarded by mu
}

// session is a process attached to the peer.
type session struct {
	layout offload.Layout
	region *shm.Region
	shm    *shm.Transport
	queues []*queue // guarded by Peer.mu, used by Run alone
	bound  map[uint32]offload.Addr
	next   uint32 // DPU's handles
}

// queue is one queue pair with its connections.
type queue struct {
	s     *session
	qp    *offload.DevQP
	conns map[uint32]*conn
	due   []*conn // those whose turn it is
	dead  bool
}

// New returns a peer whose clients send request, again for each answer, over
// conns connections to each listener.
func New(request []byte, conns int) *Peer {
	return &Peer{request: request, conns: conns, sessions: make(map[uint64]*session)}
}

// Serve makes the peer the back end of whatever address the host connects to: it
// says answer to each request. It is called before Run or Turn.
func (p *Peer) Serve(answer []byte) { p.answer = answer }

// Answered is the number of whole answers to clients so far. Any goroutine may call it.
func (p *Peer) Answered() uint64 { return p.answered.Load() }

// Shards implements control.Backend.
func (*Peer) Shards() int { return 1 }

// Connected implements control.Backend.
func (*Peer) Connected() {}

// Disconnected implements control.Backend.
func (*Peer) Disconnected() {}

// OpenSession implements control.Backend.
func (p *Peer) OpenSession(id uint64, l offload.Layout, _ offload.Process, memory int, doorbells []int) error {
	region, err := shm.Map(memory, l.TotalSize())
	_ = unix.Close(memory)
	if err != nil {
		for _, fd := range doorbells {
			_ = unix.Close(fd)
		}
		return fmt.Errorf("map session memory: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sessions[id] = &session{layout: l, region: region, shm: region.NewTransport(doorbells[0]),
		bound: make(map[uint32]offload.Addr), next: 1}
	return nil
}

// KeepSession implements control.Backend: nothing outlives an agent here.
func (*Peer) KeepSession(id uint64, _ offload.Layout) error {
	return fmt.Errorf("session %d is not kept", id)
}

// CloseSession implements control.Backend.
func (p *Peer) CloseSession(id uint64, _ string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.sessions[id]; s != nil {
		delete(p.sessions, id)
		for _, q := range s.queues {
			q.dead = true
		}
		_ = s.shm.Close()
		_ = s.region.Close()
	}
	return nil
}

// OpenChannel implements control.Backend.
func (p *Peer) OpenChannel(id uint64, channel, interrupt int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.sessions[id]
	if s == nil || channel < 0 || channel >= s.layout.Channels {
		_ = unix.Close(interrupt)
		return fmt.Errorf("open channel %d of session %d: there is none", channel, id)
	}
	if err := s.region.OpenChannel(channel, interrupt); err != nil {
		return err
	}
	s.queues = append(s.queues, &queue{s: s, qp: offload.NewDevQP(s.shm, s.layout, channel, 0), conns: make(map[uint32]*conn)})
	return nil
}

// AdoptFork implements control.Backend: one process has its listeners to itself.
func (*Peer) AdoptFork(uint64, [16]byte) error { return syscall.EOPNOTSUPP }

// DropFork implements control.Backend.
func (*Peer) DropFork([16]byte) error { return nil }

// KeepFork implements control.Backend.
func (*Peer) KeepFork([16]byte) error { return nil }

// Transfer implements control.Backend.
func (*Peer) Transfer(uint64, uint64, int, uint32) (uint32, error) { return 0, syscall.EOPNOTSUPP }

// TransferParked implements control.Backend.
func (*Peer) TransferParked(uint64, [16]byte, int) (uint32, error) { return 0, syscall.EOPNOTSUPP }

// Run polls until ctx ends.
func (p *Peer) Run(ctx context.Context) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for ctx.Err() == nil {
		if err := p.Turn(); err != nil {
			return err
		}
	}
	return nil
}

// Turn takes all that has been sent, and answers it.
func (p *Peer) Turn() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.sessions {
		for _, q := range s.queues {
			if q.dead {
				continue
			}
			if err := p.turn(q); err != nil {
				return err
			}
		}
	}
	return nil
}

// turn executes what the process wrote on q and answers it, in one batch.
func (p *Peer) turn(q *queue) error {
	if err := q.qp.Pump(); err != nil {
		return fmt.Errorf("read ring: %w", err)
	}
	for {
		rec, payload, ok, err := q.qp.Next()
		if err != nil {
			return fmt.Errorf("read record: %w", err)
		}
		if !ok {
			break
		}
		if err := p.execute(q, rec, payload); err != nil {
			return err
		}
	}
	q.speak()
	if !q.qp.Dirty() {
		if q.qp.InterruptDue() { // it fell asleep since
			q.qp.Interrupt()
		}
		return nil
	}
	if err := q.qp.Flush(); err != nil {
		return fmt.Errorf("write ring: %w", err)
	}
	if err := q.qp.Pump(); err != nil {
		return fmt.Errorf("read ring: %w", err)
	}
	if q.qp.InterruptDue() {
		q.qp.Interrupt()
	}
	return nil
}

// SPDX-License-Identifier: Apache-2.0

// Package shard runs one core of the DPU to completion: frames from the wire
// into the network stack, sockets with news to the hosts, records of the hosts
// into the stack, everything out in batches, and sleep when there is nothing.
//
// A Shard is one goroutine (Run). It owns its stack, its link queues, its
// session table and its timer; shards share nothing but the hand-over queues
// between them (frames that a device delivered to the wrong one) and mailboxes
// for rare requests (Do), which any goroutine may use.
//
// The goroutine is locked to an operating system thread only if it is to stay on
// a core: gVisor's TCP processor is a goroutine of its own that must run after
// each batch, and a switch between goroutines costs a tenth of a switch between
// threads.
package shard

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"pno/dpu/link"
	"pno/dpu/netstack"
	"pno/dpu/report"
	"pno/dpu/rss"
	"pno/dpu/session"
)

// Poll bounds what a shard spends on looking for work before it sleeps.
type Poll struct {
	// Spin is the longest time that an idle shard polls for frames; for the
	// answer of a host it is twice that. It adapts: a shard whose sleeps are
	// long soon does not poll at all.
	Spin time.Duration
}

// DefaultSpin is about what falling asleep and waking up costs.
const DefaultSpin = 20 * time.Microsecond

// rxBatch is the most frames taken from a queue in one turn.
const rxBatch = 64

// Port is a network port as one shard sees it.
type Port struct {
	Endpoint *netstack.Endpoint
	Queues   []link.Queue // owned by this shard; empty if it sends through another
	MTU      int
}

// port is a Port in service.
type port struct {
	Port
	via  *handover   // to the owner of a queue, if this shard has none
	peer *Shard      // that owner
	from []*handover // of shards that send through this one's queue
}

// Shard is one core's loop.
type Shard struct {
	Index int
	Table *session.Table
	Stack *netstack.Stack

	core  int // see Config
	log   *slog.Logger
	rss   *rss.Table
	ports []*port
	peers []*Shard
	in    [][]*handover // by shard and port: frames received there for us
	out   [][]*handover // by shard and port: frames received here for them
	poke  []bool        // by shard: was given frames this turn

	sleeper *sleeper
	base    time.Time
	frames  [rxBatch][]byte
	idle    idler
	gather  gatherer
	ackDue  int64 // when a held acknowledgement must go, 0 if none is held

	mu      sync.Mutex
	mail    []func() // guarded by mu
	stopped bool     // guarded by mu: nobody reads mail any more
	hasMail atomic.Bool
	stop    atomic.Bool

	stats  report.Shard
	doneCh chan struct{}
}

// Config describes a shard.
type Config struct {
	Index  int
	Shards int
	RSS    *rss.Table
	Poll   Poll
	Core   int // that the loop stays on; wherever the scheduler puts it if negative
	Log    *slog.Logger
}

// New returns a shard without stack, ports and table, which the caller sets
// with Attach: they need the shard's Wake.
func New(c Config) (*Shard, error) {
	sl, err := newSleeper()
	if err != nil {
		return nil, fmt.Errorf("shard %d: %w", c.Index, err)
	}
	s := &Shard{
		Index: c.Index, core: c.Core, log: c.Log, rss: c.RSS, sleeper: sl, base: time.Now(),
		idle: newIdler(int64(c.Poll.Spin)), poke: make([]bool, c.Shards), doneCh: make(chan struct{}),
	}
	s.stats.Index = c.Index
	return s, nil
}

// Attach gives the shard its stack, ports and sessions, before Run.
func (s *Shard) Attach(st *netstack.Stack, t *session.Table, ports []Port) error {
	s.Stack, s.Table = st, t
	for _, p := range ports {
		s.ports = append(s.ports, &port{Port: p})
		for _, q := range p.Queues {
			if err := s.sleeper.watch(q.FD(), linkToken); err != nil {
				return fmt.Errorf("shard %d: watch link queue: %w", s.Index, err)
			}
		}
	}
	return nil
}

// Connect links the shards with each other, once all are attached.
func Connect(shards []*Shard) error {
	for _, s := range shards {
		s.peers = shards
		s.in = make([][]*handover, len(shards))
		s.out = make([][]*handover, len(shards))
	}
	for _, a := range shards {
		for _, b := range shards {
			if a == b {
				continue
			}
			for _, p := range a.ports {
				h := newHandover(p.MTU + 18)
				a.out[b.Index] = append(a.out[b.Index], h)
				b.in[a.Index] = append(b.in[a.Index], h)
			}
		}
		for i, p := range a.ports {
			if len(p.Queues) > 0 {
				continue
			}
			owner := ownerOf(shards, a.Index, i)
			if owner == nil {
				return fmt.Errorf("network port %d has no queue", i)
			}
			p.via, p.peer = newHandover(p.MTU+18), owner
			owner.ports[i].from = append(owner.ports[i].from, p.via)
		}
	}
	return nil
}

// ownerOf spreads the shards without a queue of a port over those with one.
func ownerOf(shards []*Shard, index, port int) *Shard {
	var owners []*Shard
	for _, s := range shards {
		if len(s.ports[port].Queues) > 0 {
			owners = append(owners, s)
		}
	}
	if len(owners) == 0 {
		return nil
	}
	return owners[index%len(owners)]
}

// Wake makes a sleeping loop look around. Any goroutine may call it.
func (s *Shard) Wake() { s.sleeper.wake() }

// now is the loop's clock.
func (s *Shard) now() int64 { return int64(time.Since(s.base)) }

// Do has f run by the loop and waits for it. It reports false if the loop has
// ended or ctx did first, in which case f may still run.
func (s *Shard) Do(ctx context.Context, f func()) bool {
	done := make(chan struct{})
	if !s.Post(func() { f(); close(done) }) {
		return false
	}
	select {
	case <-done:
		return true
	case <-ctx.Done():
	case <-s.doneCh:
	}
	return false
}

// Post has f run by the loop. It reports false if the loop has ended.
func (s *Shard) Post(f func()) bool {
	s.mu.Lock()
	ok := !s.stopped
	if ok {
		s.mail = append(s.mail, f)
	}
	s.mu.Unlock()
	if ok {
		s.hasMail.Store(true)
		s.Wake()
	}
	return ok
}

func (s *Shard) readMail() bool {
	if !s.hasMail.Load() {
		return false
	}
	s.hasMail.Store(false)
	s.mu.Lock()
	list := s.mail
	s.mail = nil
	s.mu.Unlock()
	for _, f := range list {
		f()
	}
	return len(list) > 0
}

// Watch has a session's doorbell wake the loop. Called by the loop.
func (s *Shard) Watch(fd int, session uint64) error { return s.sleeper.watch(fd, session) }

// Unwatch undoes Watch. Called by the loop.
func (s *Shard) Unwatch(fd int) { s.sleeper.unwatch(fd) }

// Run is the loop; it returns when ctx ends.
func (s *Shard) Run(ctx context.Context) {
	defer close(s.doneCh)
	defer context.AfterFunc(ctx, func() { s.stop.Store(true); s.Wake() })()
	if s.core >= 0 {
		if err := Pin(s.core); err != nil {
			s.log.Error("shard goes on without a core of its own", "shard", s.Index, "err", err)
		}
	}
	s.log.Debug("shard started", "shard", s.Index)
	polled := int64(0)
	for !s.stop.Load() {
		now := s.now()
		busy := s.turn(now)
		s.stats.Loops++
		if busy {
			s.stats.BusyLoops++
			s.idle.found(now)
			if now-polled > pollEvery {
				// Doorbells of silent channels are seen while others keep
				// the loop busy.
				polled = now
				s.rung(s.sleeper.poll())
				s.Table.Cool(now, false)
			}
			continue
		}
		if s.idle.polls(now, s.Table.Owed()) {
			s.stats.Spins++
			yield()
			continue
		}
		if s.sleep() {
			s.idle.slept(s.now())
		}
	}
	s.shutdown()
}

// pollEvery is how often a busy loop looks at file descriptors.
const pollEvery = 50_000

// turn does what there is to do, once round.
func (s *Shard) turn(now int64) bool {
	s.Stack.HoldClock()
	s.ackDue = s.Stack.Tick(now)
	busy := s.receive(now)
	// The TCP processor goroutine takes over what was delivered; when there
	// was nothing, a timer may still want to run.
	runtime.Gosched()
	if s.readMail() {
		busy = true
	}
	if s.Table.Turn(now) {
		busy = true
	}
	s.Table.Flush(now)
	if s.gathers() {
		return true
	}
	if s.transmit() {
		busy = true
	}
	return busy
}

// sleep parks the loop until something happens. It reports false if there was
// work after all.
func (s *Shard) sleep() bool {
	now := s.now()
	busy, again := s.Table.Cool(now, true)
	if busy {
		return false
	}
	full := s.waiting()
	for _, p := range s.ports {
		for _, q := range p.Queues {
			full = full || q.TxPending()
		}
	}
	if full && (again < 0 || again > linkRetry) {
		again = linkRetry
	}
	if s.ackDue > 0 && (again < 0 || s.ackDue-now < again) {
		again = max(s.ackDue-now, 0)
	}
	if again >= 0 && again < shortest {
		return false
	}
	s.sleeper.prepare()
	if s.pending() || !full && s.waiting() || s.ackDue == 0 && s.Stack.Holds() {
		s.sleeper.cancel()
		return false
	}
	s.stats.Parks++
	s.Stack.ReleaseClock()
	rung := s.sleeper.park(again)
	s.stats.ParkedNS += uint64(s.now() - now)
	s.rung(rung)
	if len(rung) == 0 {
		// The first frame of a batch has woken the loop. If its sender shares
		// the core, it was interrupted by that, and goes on.
		yield()
	}
	return true
}

const (
	linkRetry = 20_000 // a full link is tried again after this time
	shortest  = 3_000  // a shorter sleep is not worth its system calls
)

// waiting tells whether the stack has something for the link.
func (s *Shard) waiting() bool {
	for _, p := range s.ports {
		if p.Endpoint.Waiting() {
			return true
		}
	}
	return false
}

// pending looks for work that arrived without waking a loop that had not
// announced its sleep yet.
func (s *Shard) pending() bool {
	if s.hasMail.Load() || s.stop.Load() || s.Table.Ready() {
		return true
	}
	for _, list := range s.in {
		for _, h := range list {
			if !h.empty() {
				return true
			}
		}
	}
	for _, p := range s.ports {
		for _, h := range p.from {
			if !h.empty() {
				return true
			}
		}
	}
	return false
}

// rung hands doorbells to the sessions.
func (s *Shard) rung(sessions []uint64) {
	for _, id := range sessions {
		s.Table.Doorbell(id)
	}
}

// shutdown ends what the loop owns.
func (s *Shard) shutdown() {
	s.Stack.ReleaseClock()
	s.readMail()
	s.mu.Lock()
	s.stopped = true
	s.mail = nil
	s.mu.Unlock()
	s.Table.CloseAll()
	s.transmit()
	s.Stack.Close()
	s.sleeper.close()
	s.log.Debug("shard stopped", "shard", s.Index)
}

// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"pno/dpu/link"
)

const (
	headerLen    = 14 // Ethernet
	defaultMTU   = 1500
	defaultLimit = 4096
	// A receiver may hold half a sender's frames before it is taken for one
	// that never releases: more than anybody's batch.
	minLimit = 256
)

// Config describes a wire. Index 0 of each pair is the first device that Pair
// returns, index 1 the second.
type Config struct {
	Names  [2]string
	MACs   [2][6]byte
	MTU    int    // 1500 if 0
	Queues [2]int // of each device, 1 if 0

	// Limit is how many frames a transmit queue may have under way: committed,
	// on the wire, and not yet released by the receiver. 4096 if 0. A receiver
	// that holds half of them without releasing any loses what comes next.
	Limit int
	// DropTail loses frames beyond Limit instead of pushing back.
	DropTail bool

	// Steer chooses the receive queue of a device for a frame, modulo the
	// number of queues; FlowHash if nil. It must be safe for concurrent use.
	Steer [2]func(frame []byte) int

	Faults [2]Faults // of the frames that each device sends
	Seed   uint64
}

func (c *Config) setDefaults() error {
	for i := range 2 {
		if c.Names[i] == "" {
			c.Names[i] = fmt.Sprintf("wire%d", i)
		}
		if c.MACs[i] == [6]byte{} {
			c.MACs[i] = [6]byte{0x02, 0x70, 0x6e, 0x6f, 0, byte(i + 1)}
		}
		if c.Queues[i] == 0 {
			c.Queues[i] = 1
		}
		if c.Queues[i] < 0 {
			return fmt.Errorf("make wire: %d queues on %s", c.Queues[i], c.Names[i])
		}
		if c.Steer[i] == nil {
			c.Steer[i] = FlowHash
		}
		if err := c.Faults[i].check(); err != nil {
			return fmt.Errorf("make wire: frames from %s: %w", c.Names[i], err)
		}
	}
	if c.MTU == 0 {
		c.MTU = defaultMTU
	}
	if c.MTU < 576 || c.MTU > 65535-headerLen {
		return fmt.Errorf("make wire: MTU %d, want 576 to %d", c.MTU, 65535-headerLen)
	}
	if c.Limit == 0 {
		c.Limit = defaultLimit
	}
	if c.Limit < minLimit {
		return fmt.Errorf("make wire: limit of %d frames, want at least %d", c.Limit, minLimit)
	}
	return nil
}

// Device is one end of a wire.
type Device struct {
	name   string
	mac    [6]byte
	mtu    int
	queues []*Queue
	closed atomic.Bool

	txPackets, txBytes, txDropped, kicks atomic.Uint64
}

var _ link.Device = (*Device)(nil)

// Pair makes a wire and returns its two ends.
func Pair(cfg Config) (*Device, *Device, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, nil, err
	}
	var ends [2]*Device
	for i := range ends {
		ends[i] = &Device{name: cfg.Names[i], mac: cfg.MACs[i], mtu: cfg.MTU}
		for n := range cfg.Queues[i] {
			inFlight := cfg.Limit * cfg.Queues[1-i]
			l, err := newLane(inFlight, cfg.Limit/2, cfg.Faults[1-i].timed())
			if err != nil {
				for _, d := range ends[:i+1] {
					_ = d.Close()
				}
				return nil, nil, fmt.Errorf("make wire: queue %d of %s: %w", n, cfg.Names[i], err)
			}
			ends[i].queues = append(ends[i].queues, &Queue{dev: ends[i], lane: l})
		}
	}
	for i, d := range ends {
		way := &direction{faults: cfg.Faults[i], steer: cfg.Steer[1-i]}
		for _, q := range ends[1-i].queues {
			way.lanes = append(way.lanes, q.lane)
		}
		for n, q := range d.queues {
			q.way = way
			q.dropTail = cfg.DropTail
			q.rng = rand.New(rand.NewPCG(cfg.Seed, uint64(i)<<32|uint64(n)))
			q.fill(cfg.Limit, cfg.MTU+headerLen)
		}
	}
	return ends[0], ends[1], nil
}

// Name implements link.Device.
func (d *Device) Name() string { return d.name }

// MAC implements link.Device.
func (d *Device) MAC() [6]byte { return d.mac }

// MTU implements link.Device.
func (d *Device) MTU() int { return d.mtu }

// Queues implements link.Device.
func (d *Device) Queues() []link.Queue {
	qs := make([]link.Queue, len(d.queues))
	for i, q := range d.queues {
		qs[i] = q
	}
	return qs
}

// Stats implements link.Device. RxDropped counts the frames that found this
// end holding too many unreleased ones; those lost to faults are in the
// sender's TxDropped.
func (d *Device) Stats() link.Stats {
	s := link.Stats{
		TxPackets: d.txPackets.Load(), TxBytes: d.txBytes.Load(),
		TxDropped: d.txDropped.Load(), Kicks: d.kicks.Load(),
	}
	for _, q := range d.queues {
		l := q.lane
		l.mu.Lock()
		s.RxPackets += l.packets
		s.RxBytes += l.bytes
		s.RxDropped += l.dropped
		l.mu.Unlock()
	}
	return s
}

// Close implements link.Device: frames still under way to this end are lost,
// and the other end goes on sending to nobody.
func (d *Device) Close() error {
	if d.closed.Swap(true) {
		return nil
	}
	var first error
	for _, q := range d.queues {
		q.Release()
		if err := q.lane.close(); err != nil && first == nil {
			first = fmt.Errorf("close %s: %w", d.name, err)
		}
	}
	return first
}

// frame is one buffer of a transmit queue's pool. It belongs to the sending
// queue, to a lane, or to the receiving queue, in turn.
type frame struct {
	buf  []byte
	n    int
	due  int64  // when it arrives, if the direction is timed
	seq  uint64 // order of sending, to break ties
	home *Queue
}

// direction is what the queues of one device share when they send.
type direction struct {
	faults Faults
	steer  func([]byte) int
	lanes  []*lane

	mu      sync.Mutex // guards what follows, used by timed directions only
	freeAt  int64      // when the wire has serialised everything sent so far
	lastDue int64      // arrival of the latest frame that keeps its place
	seq     uint64
}

// Queue is one queue of a Device.
type Queue struct {
	dev  *Device
	lane *lane // where frames for this queue arrive

	// Receive half.
	held []*frame

	// Transmit half.
	way       *direction
	dropTail  bool
	rng       *rand.Rand
	free      []*frame
	cur       *frame
	committed []*frame
	twins     []*frame // duplicates that impair makes
	scratch   []byte   // DropTail's frame to nowhere
	toNowhere bool     // TxAlloc's last answer was scratch

	// What receivers gave back, for free to take over.
	backMu  sync.Mutex
	back    []*frame
	starved bool // TxAlloc answered nil: the next Release wakes this queue
}

var _ link.Queue = (*Queue)(nil)

func (q *Queue) fill(limit, size int) {
	slab := make([]byte, limit*size)
	frames := make([]frame, limit)
	q.free = make([]*frame, 0, limit)
	q.back = make([]*frame, 0, limit)
	q.committed = make([]*frame, 0, limit)
	if q.way.faults.Duplicate > 0 {
		q.twins = make([]*frame, 0, limit)
	}
	for i := range frames {
		f := &frames[i]
		f.buf = slab[i*size : (i+1)*size : (i+1)*size]
		f.home = q
		q.free = append(q.free, f)
	}
	if q.dropTail {
		q.scratch = make([]byte, size)
	}
}

// Recv implements link.Queue.
func (q *Queue) Recv(frames [][]byte) (int, error) {
	if q.dev.closed.Load() {
		return 0, link.ErrClosed
	}
	if len(frames) == 0 {
		return 0, nil
	}
	before := len(q.held)
	held, err := q.lane.take(q.held, len(frames))
	q.held = held
	for i, f := range held[before:] {
		frames[i] = f.buf[:f.n:f.n]
	}
	return len(held) - before, err
}

// Release implements link.Queue.
func (q *Queue) Release() {
	if len(q.held) == 0 {
		return
	}
	q.lane.release(len(q.held))
	giveBack(q.held)
	q.held = q.held[:0]
}

// giveBack returns frames to the pools they came from and wakes the senders
// that waited for one.
func giveBack(frames []*frame) {
	for len(frames) > 0 {
		home := frames[0].home
		n := 1
		for n < len(frames) && frames[n].home == home {
			n++
		}
		home.backMu.Lock()
		home.back = append(home.back, frames[:n]...)
		wake := home.starved
		home.starved = false
		home.backMu.Unlock()
		if wake {
			home.lane.nudge()
		}
		frames = frames[n:]
	}
}

// get takes a free frame, or returns nil.
func (q *Queue) get(wait bool) *frame {
	if len(q.free) == 0 {
		q.backMu.Lock()
		q.free, q.back = q.back, q.free
		q.starved = wait && len(q.free) == 0
		q.backMu.Unlock()
		if len(q.free) == 0 {
			return nil
		}
	}
	f := q.free[len(q.free)-1]
	q.free = q.free[:len(q.free)-1]
	return f
}

// TxAlloc implements link.Queue. After it answered nil, FD becomes readable
// once the receiver has released frames, though Recv may then return none.
func (q *Queue) TxAlloc() []byte {
	if q.dev.closed.Load() {
		return nil
	}
	if q.cur == nil {
		q.cur = q.get(!q.dropTail)
	}
	if q.cur == nil {
		q.toNowhere = q.dropTail
		return q.scratch
	}
	return q.cur.buf
}

// TxCommit implements link.Queue.
func (q *Queue) TxCommit(n int) {
	if q.toNowhere {
		q.toNowhere = false
		q.dev.txDropped.Add(1)
		return
	}
	f := q.cur
	if f == nil {
		return
	}
	q.cur = nil
	if n < headerLen || n > len(f.buf) {
		q.dev.txDropped.Add(1)
		q.free = append(q.free, f)
		return
	}
	f.n = n
	q.committed = append(q.committed, f)
}

// TxPending implements link.Queue: Flush always takes everything.
func (q *Queue) TxPending() bool { return len(q.committed) > 0 && !q.dev.closed.Load() }

// FD implements link.Queue.
func (q *Queue) FD() int { return q.lane.fd }

// Flush implements link.Queue.
func (q *Queue) Flush() error {
	if q.dev.closed.Load() {
		return link.ErrClosed
	}
	if len(q.committed) == 0 {
		return nil
	}
	if q.way.faults.any() {
		q.impair()
	}
	packets, bytes := len(q.committed), 0
	for _, f := range q.committed {
		bytes += f.n
	}
	q.dev.txPackets.Add(uint64(packets))
	q.dev.txBytes.Add(uint64(bytes))
	kicks, lost := q.way.deliver(q.committed)
	q.free = append(q.free, lost...)
	q.committed = q.committed[:0]
	q.dev.kicks.Add(uint64(kicks))
	return nil
}

// deliver hands frames to the lanes they belong to, runs of frames for one
// lane at a time, and returns those that were lost, in frames' own memory.
func (w *direction) deliver(frames []*frame) (kicks int, lost []*frame) {
	lost = frames[:0]
	for len(frames) > 0 {
		at, n := 0, len(frames)
		if len(w.lanes) > 1 {
			at = w.laneOf(frames[0])
			for n = 1; n < len(frames) && w.laneOf(frames[n]) == at; n++ {
			}
		}
		took, kicked := w.lanes[at].put(frames[:n])
		if kicked {
			kicks++
		}
		lost = append(lost, frames[took:n]...)
		frames = frames[n:]
	}
	return kicks, lost
}

func (w *direction) laneOf(f *frame) int {
	n := w.steer(f.buf[:f.n]) % len(w.lanes)
	if n < 0 {
		n += len(w.lanes)
	}
	return n
}

// monotonic is CLOCK_MONOTONIC, the clock of timerfd, without a system call.
func monotonic() int64 { return clockBase + int64(time.Since(clockStart)) }

var (
	clockStart = time.Now()
	clockBase  = func() int64 {
		var ts unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
			panic("wire: the kernel has no monotonic clock: " + err.Error())
		}
		return ts.Nano()
	}()
)

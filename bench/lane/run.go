// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"

	"pno/dpu"
	"pno/dpu/netstack"
	"pno/dpu/rss"
	"pno/sim/wire"
)

// Result is what a DPU did in one run.
type Result struct {
	Requests uint64        `json:"requests"`
	Elapsed  time.Duration `json:"elapsed_ns"`
	CPU      time.Duration `json:"dpu_cpu_ns"` // of everything but the lanes
	Least    uint64        `json:"least"`      // requests of the lane with the fewest
	Allocs   uint64        `json:"allocs"`     // of memory, by the DPU and the lanes
	Bytes    uint64        `json:"bytes"`      // so allocated
	Locks    []Lock        `json:"locks"`      // that somebody waited for, longest wait first
}

// Lock is a place where goroutines waited for each other.
type Lock struct {
	Where string        `json:"where"` // the function that held the lock
	Times int64         `json:"times"`
	Wait  time.Duration `json:"wait_ns"`
}

const (
	startLimit = 30 * time.Second

	leastRequests = 50 // of each connection in a run

	firstPort = 8000 // of the listeners: lane i's is firstPort + i
)

var (
	serverAddr = netip.MustParseAddr("198.18.0.2")
	clientAddr = netip.MustParseAddr("198.18.0.9")
)

// Load is what the lanes put on a DPU.
type Load struct {
	Shards int
	Conns  int   // of each shard, at a time
	Short  bool  // a new connection for each request, which the host closes
	Cores  []int // that each shard and its lane share; wherever the scheduler puts them if empty
}

// Run loads a DPU for a time, or longer if a lane had too few requests by then.
func Run(ctx context.Context, load Load, d time.Duration) (r Result, err error) {
	shards, conns := load.Shards, load.Conns
	// A shard's short sleeps keep a processor of Go's; its lane needs another.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2*shards + 1))
	defer runtime.SetMutexProfileFraction(runtime.SetMutexProfileFraction(1))
	w, err := build(load)
	if err != nil {
		return r, err
	}
	ctx, cancel := context.WithCancel(ctx)
	served := make(chan error, 1)
	go func() { served <- w.dpu.Serve(ctx) }()
	defer func() {
		cancel()
		err = errors.Join(err, <-served)
		w.close()
	}()
	<-w.dpu.Ready()
	for i := range shards {
		h, err := openHost(w.dpu, i, shards)
		if err != nil {
			return r, fmt.Errorf("lane %d: %w", i, err)
		}
		h.closes = load.Short
		w.lanes[i].host = h
	}
	for _, l := range w.lanes {
		go l.run()
	}
	defer func() { err = errors.Join(err, w.halt()) }()
	if err := w.flowing(ctx, func(int) uint64 { return uint64(10 * conns) }); err != nil {
		return r, err
	}
	return w.measure(ctx, uint64(leastRequests*conns), d)
}

// world is a DPU with its lanes.
type world struct {
	dpu   *dpu.DPU
	ends  [2]*wire.Device
	lanes []*lane
}

func build(load Load) (*world, error) {
	shards := load.Shards
	table := rss.New(shards, netstack.PortLow, netstack.PortHigh)
	cfg := wire.Config{
		Queues: [2]int{shards, shards}, MACs: [2][6]byte{{2, 0, 0, 0, 0, 1}, {2, 0, 0, 0, 0, 2}},
	}
	cfg.Steer[0] = func(f []byte) int { return max(table.Frame(f), 0) }
	cfg.Steer[1] = func(f []byte) int {
		if len(f) < headLen || f[12] != 8 || f[13] != 0 || f[ethLen] != 0x45 {
			return 0
		}
		return int(f[ethLen+ipLen])<<8 + int(f[ethLen+ipLen+1]) - firstPort // the listener's port
	}
	near, far, err := wire.Pair(cfg)
	if err != nil {
		return nil, err
	}
	w := &world{ends: [2]*wire.Device{near, far}}
	for i, q := range far.Queues() {
		l := &lane{shard: i, core: -1, done: make(chan error, 1)}
		if len(load.Cores) > 0 {
			l.core = load.Cores[i]
		}
		l.clients.queue, l.clients.me, l.clients.macs = q, clientAddr, cfg.MACs
		l.clients.server = netip.AddrPortFrom(serverAddr, uint16(firstPort+i))
		l.clients.short, l.clients.byPort = load.Short, make(map[uint16]*client)
		for port := uint16(10000); port < 60000; port++ {
			if table.Shard(l.clients.server, netip.AddrPortFrom(clientAddr, port)) == i {
				l.clients.ports = append(l.clients.ports, port)
			}
		}
		if len(l.clients.ports) < 2*load.Conns {
			return nil, fmt.Errorf("%d connections are too many for a shard", load.Conns)
		}
		for range load.Conns {
			l.clients.begin(new(client))
		}
		w.lanes = append(w.lanes, l)
	}
	w.dpu, err = dpu.New(dpu.Config{Shards: shards, Cores: load.Cores, Interfaces: []dpu.Interface{{
		Device: near, Driver: "wire", Addresses: []netip.Prefix{netip.PrefixFrom(serverAddr, 24)},
	}}})
	return w, err
}

// halt ends the lanes; it returns what ended one before.
func (w *world) halt() error {
	var all error
	for _, l := range w.lanes {
		l.stop.Store(true)
	}
	for _, l := range w.lanes {
		all = errors.Join(all, <-l.done)
	}
	return all
}

func (w *world) close() {
	for _, l := range w.lanes {
		l.host.close()
	}
	for _, e := range w.ends {
		_ = e.Close()
	}
}

// flowing waits until every lane has had enough answers.
func (w *world) flowing(ctx context.Context, enough func(lane int) uint64) error {
	for deadline := time.Now().Add(startLimit); ; time.Sleep(time.Millisecond) {
		list, short := w.answers(), false
		for i, n := range list {
			short = short || n < enough(i)
		}
		switch {
		case !short:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case time.Now().After(deadline):
			return fmt.Errorf("too few requests are answered: %d by each lane, waiting %v for more", list, startLimit)
		}
		for _, l := range w.lanes {
			select {
			case err := <-l.done:
				l.done <- err // for halt
				return errors.New("a lane has ended")
			default:
			}
		}
	}
}

func (w *world) answers() (list []uint64) {
	for _, l := range w.lanes {
		list = append(list, l.clients.answered.Load())
	}
	return list
}

// sample is what the counters say at one moment.
type sample struct {
	answers []uint64
	cpu     time.Duration
	locks   map[string]Lock
	at      time.Time
}

func (w *world) sample() (s sample, err error) {
	s.answers, s.at = w.answers(), time.Now()
	if s.cpu, err = clock(unix.CLOCK_PROCESS_CPUTIME_ID); err != nil {
		return s, err
	}
	for _, l := range w.lanes {
		// The clock of a thread, see clock_getcpuclockid(3).
		const thread, sched = 4, 2
		d, err := clock(^l.tid.Load()<<3 | thread | sched)
		if err != nil {
			return s, err
		}
		s.cpu -= d
	}
	s.locks, err = locks()
	return s, err
}

// allocs is how often the process has allocated memory, and how much.
func allocs() (n, bytes uint64) {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.Mallocs, m.TotalAlloc
}

func clock(id int32) (time.Duration, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(id, &ts); err != nil {
		return 0, fmt.Errorf("read CPU clock: %w", err)
	}
	return time.Duration(ts.Nano()), nil
}

func (w *world) measure(ctx context.Context, least uint64, d time.Duration) (r Result, err error) {
	before, err := w.sample()
	if err != nil {
		return r, err
	}
	number, bytes := allocs() // taking a sample allocates
	select {
	case <-ctx.Done():
		return r, ctx.Err()
	case <-time.After(d):
	}
	// On a busy machine a lane may have had hardly a turn yet; what waking up
	// costs would pass for what a request does.
	if err := w.flowing(ctx, func(i int) uint64 { return before.answers[i] + least }); err != nil {
		return r, err
	}
	r.Allocs, r.Bytes = allocs()
	r.Allocs, r.Bytes = r.Allocs-number, r.Bytes-bytes
	after, err := w.sample()
	if err != nil {
		return r, err
	}
	r.Elapsed, r.CPU = after.at.Sub(before.at), after.cpu-before.cpu
	for i := range after.answers {
		n := after.answers[i] - before.answers[i]
		r.Requests += n
		if i == 0 || n < r.Least {
			r.Least = n
		}
	}
	for where, l := range after.locks {
		l.Times -= before.locks[where].Times
		l.Wait -= before.locks[where].Wait
		if l.Times > 0 {
			r.Locks = append(r.Locks, l)
		}
	}
	slices.SortFunc(r.Locks, func(a, b Lock) int {
		return cmp.Or(cmp.Compare(b.Wait, a.Wait), cmp.Compare(a.Where, b.Where))
	})
	return r, nil
}

// locks reads the mutex profile, by the function that held the lock.
func locks() (map[string]Lock, error) {
	records := make([]runtime.BlockProfileRecord, 256)
	n, ok := runtime.MutexProfile(records)
	for !ok {
		records = make([]runtime.BlockProfileRecord, 2*n)
		n, ok = runtime.MutexProfile(records)
	}
	rate, err := ticks()
	if err != nil {
		return nil, err
	}
	list := make(map[string]Lock)
	for _, r := range records[:n] {
		where := holder(r.Stack())
		l := list[where]
		l.Where = where
		l.Times += r.Count
		l.Wait += time.Duration(float64(r.Cycles) / rate * 1e9)
		list[where] = l
	}
	return list, nil
}

// ticks is how many of the profile's cycles a second has.
func ticks() (float64, error) {
	var b bytes.Buffer
	if err := pprof.Lookup("mutex").WriteTo(&b, 1); err != nil {
		return 0, fmt.Errorf("read mutex profile: %w", err)
	}
	var n float64
	_, text, _ := strings.Cut(b.String(), "cycles/second=")
	if _, err := fmt.Sscan(text, &n); err != nil || n <= 0 {
		return 0, errors.New("read mutex profile: it does not say how long a cycle is")
	}
	return n, nil
}

// holder is the first function of a stack that is not a lock's own.
func holder(stack []uintptr) string {
	frames := runtime.CallersFrames(stack)
	last := "unknown"
	for {
		f, more := frames.Next()
		if f.Function != "" {
			last = f.Function
		}
		if own := f.Function; !strings.HasPrefix(own, "sync.") && !strings.HasPrefix(own, "internal/sync.") &&
			!strings.HasPrefix(own, "gvisor.dev/gvisor/pkg/sync.") || !more {
			return last
		}
	}
}

func hardware(m [6]byte) tcpip.LinkAddress { return tcpip.LinkAddress(m[:]) }

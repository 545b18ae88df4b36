// SPDX-License-Identifier: Apache-2.0

package shard

import (
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Tokens of the descriptors that are not a session's doorbell. Sessions'
// numbers have 63 bits.
const (
	linkToken = 1 << 63
	wakeToken = linkToken + 1
	timeToken = linkToken + 2
)

// States of a sleeper.
const (
	awake = iota
	asleep
	woken
)

// A sleep blocks the shard's own thread for a nap, before it turns into one that
// leaves the thread to others; they, and the stack's timers, wait as long. The
// change is dear: the runtime takes the processor for idle, its monitor thread
// goes to sleep, too, and the first system call afterwards wakes it. It then
// looks around every 70 us for some 4 ms, and each look takes the core from the
// loop, just when there is work again. So if the last long sleep ended before
// napsEnd, the next goes on as longer naps, between which others have their turn.
const (
	firstNap   = 1_000_000
	longestNap = 4_000_000
	napsEnd    = 16_000_000 // from the beginning of the sleep
)

// sleeper lets the loop sleep on all its descriptors at once, which are in one
// epoll instance. Between packets of a busy shard a sleep is short, and the
// thread simply waits in the kernel, unknown to the Go scheduler. Parking the
// goroutine would have the scheduler poll by itself and stop and start its
// monitor thread; a wait that the scheduler knows of would have the monitor
// take the processor away after 20 us: a tenth of all CPU either way. Other
// goroutines of the processor wait with it, so a sleep that turns out longer
// goes on in the Go netpoller, which watches the epoll instance and blocks no
// thread. A timerfd limits it, since the runtime's own timers round up to a
// millisecond.
//
// No wake-up is lost: the loop stores asleep, then looks for work once more;
// a waker adds work, then loads the state.
type sleeper struct {
	ep    *os.File
	epfd  int
	conn  syscall.RawConn
	event int
	timer int
	state atomic.Int32

	armed  bool
	brief  bool // the last sleep that was longer than a nap ended before napsEnd
	look   func(fd uintptr) bool
	events [64]unix.EpollEvent
	rung   []uint64
}

func newSleeper() (*sleeper, error) {
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create epoll instance: %w", err)
	}
	if err := unix.SetNonblock(epfd, true); err != nil {
		_ = unix.Close(epfd)
		return nil, fmt.Errorf("set epoll instance non-blocking: %w", err)
	}
	s := &sleeper{ep: os.NewFile(uintptr(epfd), "shard"), epfd: epfd, event: -1, timer: -1}
	if s.conn, err = s.ep.SyscallConn(); err != nil {
		s.close()
		return nil, fmt.Errorf("poll epoll instance: %w", err)
	}
	if s.event, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		s.close()
		return nil, fmt.Errorf("create eventfd: %w", err)
	}
	if s.timer, err = unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK); err != nil {
		s.close()
		return nil, fmt.Errorf("create timerfd: %w", err)
	}
	if err := s.watch(s.event, wakeToken); err != nil {
		s.close()
		return nil, err
	}
	if err := s.watch(s.timer, timeToken); err != nil {
		s.close()
		return nil, err
	}
	s.look = func(uintptr) bool { return s.collect() > 0 || s.state.Load() == woken }
	return s, nil
}

// watch adds a descriptor. -1 is ignored: the owner must be polled.
func (s *sleeper) watch(fd int, token uint64) error {
	if fd < 0 {
		return nil
	}
	ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(token), Pad: int32(token >> 32)}
	if err := unix.EpollCtl(s.epfd, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		return fmt.Errorf("watch descriptor %d: %w", fd, err)
	}
	return nil
}

// unwatch removes a descriptor, which closing alone would not: another
// process has it open too.
func (s *sleeper) unwatch(fd int) {
	if fd >= 0 {
		_ = unix.EpollCtl(s.epfd, unix.EPOLL_CTL_DEL, fd, nil) // it may be gone
	}
}

// wake ends a sleep, or prevents the one that is about to begin.
func (s *sleeper) wake() {
	if s.state.Load() == asleep && s.state.CompareAndSwap(asleep, woken) {
		one := [8]byte{1}
		_, _ = unix.Write(s.event, one[:]) // a full counter wakes just as well
	}
}

// prepare announces a sleep; the caller looks for work afterwards.
func (s *sleeper) prepare() { s.state.Store(asleep) }

// cancel withdraws the announcement.
func (s *sleeper) cancel() {
	if s.state.Swap(awake) == woken {
		s.drain(s.event)
	}
}

// park sleeps until a descriptor is ready, somebody calls wake, or after the
// given nanoseconds unless they are negative. It returns the sessions whose
// doorbell rang, valid until the next call.
func (s *sleeper) park(nanos int64) []uint64 {
	s.rung = s.rung[:0]
	over, napped := s.nap(nanos)
	if over {
		s.cancel()
		return s.rung
	}
	if nanos >= 0 {
		s.setTimer(max(nanos-napped, 1))
	} else if s.armed {
		s.setTimer(0)
	}
	start := time.Now()
	_ = s.conn.Read(s.look) // fails only once the sleeper is closed
	s.brief = int64(time.Since(start))+napped < napsEnd
	s.cancel()
	return s.rung
}

// naps is for how long a sleep blocks the thread.
func (s *sleeper) naps() int64 {
	if s.brief {
		return napsEnd
	}
	return firstNap
}

// nap waits on this thread, for as long as naps says, or not at all if the system
// cannot. It reports whether the sleep is over, and how long it waited if not.
func (s *sleeper) nap(nanos int64) (over bool, slept int64) {
	end := s.naps()
	if nanos >= 0 && nanos < end {
		end = nanos
	}
	for length := int64(firstNap); ; length = min(2*length, longestNap) {
		length = min(length, end-slept)
		if n, ok := s.block(length); n > 0 || !ok {
			return ok, slept
		}
		if slept += length; slept == end {
			return end == nanos, slept
		}
		runtime.Gosched()
	}
}

// block waits on this thread, and returns the number of ready descriptors. A
// signal, as of the garbage collector that wants the world to stop, ends it, too,
// and then counts as one. ok is false if the system cannot do this.
func (s *sleeper) block(nanos int64) (n int, ok bool) {
	limit := unix.NsecToTimespec(nanos)
	r, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT2, uintptr(s.epfd), uintptr(unsafe.Pointer(&s.events)),
		uintptr(len(s.events)), uintptr(unsafe.Pointer(&limit)), 0, 0)
	switch errno {
	case 0:
		s.take(int(r))
		return int(r), true
	case unix.EINTR:
		return 1, true
	default: // Linux before 5.11, or a filter that does not know the call
		return 0, false
	}
}

// yield lets other threads of the core have their turn, of which one may be
// about to send what a polling loop waits for.
func yield() { _, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0) }

// poll looks without sleeping.
func (s *sleeper) poll() []uint64 {
	s.rung = s.rung[:0]
	s.collect()
	return s.rung
}

func (s *sleeper) setTimer(nanos int64) {
	it := unix.ItimerSpec{Value: unix.NsecToTimespec(nanos)}
	_ = unix.TimerfdSettime(s.timer, 0, &it, nil) // cannot fail with these arguments
	s.armed = nanos > 0
}

// collect takes the ready descriptors and returns their number.
func (s *sleeper) collect() int {
	n, err := unix.EpollWait(s.epfd, s.events[:], 0)
	if err != nil {
		return 0
	}
	s.take(n)
	return n
}

// take notes what the first n events say.
func (s *sleeper) take(n int) {
	for _, e := range s.events[:n] {
		switch token := uint64(uint32(e.Fd)) | uint64(uint32(e.Pad))<<32; token {
		case linkToken:
		case wakeToken:
			s.drain(s.event)
		case timeToken:
			s.drain(s.timer)
			s.armed = false
		default:
			s.rung = append(s.rung, token)
		}
	}
}

func (s *sleeper) drain(fd int) {
	var b [8]byte
	_, _ = unix.Read(fd, b[:]) // EAGAIN: it was drained already
}

func (s *sleeper) close() {
	for _, fd := range []int{s.event, s.timer} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
	_ = s.ep.Close()
}

// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"container/heap"
	"encoding/binary"
	"fmt"
	"math"
	"sync"

	"golang.org/x/sys/unix"

	"pno/dpu/link"
)

// lane is where the frames for one receive queue arrive. Any sender puts, one
// receiver takes. A plain lane wakes its receiver by an eventfd, a timed lane
// by a timerfd that is set to the arrival of its earliest frame.
//
// The receiver is signalled only after it has found the lane empty, so that a
// busy receiver costs the sender no system call: frames waiting imply that fd
// is readable, and fd stays readable until a take finds nothing.
//
// An eventfd is written to without mu: the receiver that this wakes may take the
// sender's core at once, and would then wait for mu. So a signal may come late,
// after the take of what it tells of. It is told by the count that an eventfd
// keeps, and a take that finds nothing clears it, too.
type lane struct {
	mu      sync.Mutex
	fd      int
	timed   bool
	closed  bool
	timerAt int64 // timed: what fd is set to; never later than the first frame

	// Plain lanes.
	armed   bool   // the receiver found nothing, and is owed a signal
	signals uint64 // decided on
	writing int    // of them, those being written; the last one closes fd if the lane is closed
	cleared uint64 // read from fd

	ready   ring
	pending dueHeap // timed: frames that have not arrived
	held    int     // taken and not released
	maxHeld int

	packets, bytes, dropped uint64
}

const never = math.MaxInt64

func newLane(inFlight, maxHeld int, timed bool) (*lane, error) {
	l := &lane{timed: timed, armed: true, timerAt: never, maxHeld: maxHeld}
	var err error
	if timed {
		l.pending = make(dueHeap, 0, inFlight)
		l.fd, err = unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	} else {
		l.fd, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	}
	if err != nil {
		return nil, fmt.Errorf("create wake-up descriptor: %w", err)
	}
	l.ready.init(inFlight)
	return l, nil
}

// put adds frames in order and returns how many it took, and whether that
// took a system call. The rest is lost: the lane is closed, or its receiver
// does not release what it has.
func (l *lane) put(frames []*frame) (took int, kicked bool) {
	took, wake, kicked := l.add(frames)
	if wake {
		l.signal()
	}
	return took, wake || kicked
}

// add is put but for the signal, if that is due.
func (l *lane) add(frames []*frame) (took int, wake, kicked bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return 0, false, false
	}
	if l.held >= l.maxHeld {
		l.dropped += uint64(len(frames))
		return 0, false, false
	}
	if !l.timed {
		for _, f := range frames {
			l.ready.push(f)
		}
		return len(frames), l.disarm(), false
	}
	for _, f := range frames {
		heap.Push(&l.pending, f)
	}
	return len(frames), false, l.setTimer(l.pending[0].due)
}

// take appends up to limit arrived frames to out.
func (l *lane) take(out []*frame, limit int) ([]*frame, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return out, link.ErrClosed
	}
	if len(l.pending) > 0 {
		for now := monotonic(); len(l.pending) > 0 && l.pending[0].due <= now; {
			l.ready.push(heap.Pop(&l.pending).(*frame))
		}
	}
	n := min(limit, l.ready.len())
	if n == 0 {
		l.clear()
		return out, nil
	}
	for range n {
		f := l.ready.pop()
		l.bytes += uint64(f.n)
		out = append(out, f)
	}
	l.packets += uint64(n)
	l.held += n
	return out, nil
}

func (l *lane) release(n int) {
	l.mu.Lock()
	l.held -= n
	l.mu.Unlock()
}

// nudge makes fd readable although nothing has arrived.
func (l *lane) nudge() {
	l.mu.Lock()
	wake := false
	switch {
	case l.closed:
	case l.timed:
		l.setTimer(1)
	default:
		wake = l.disarm()
	}
	l.mu.Unlock()
	if wake {
		l.signal()
	}
}

// disarm decides whether a plain lane's receiver is to be signalled. It is
// called under mu, and signal after that without.
func (l *lane) disarm() bool {
	if !l.armed {
		return false
	}
	l.armed = false
	l.signals++
	l.writing++
	return true
}

// signal makes a plain lane's fd readable.
func (l *lane) signal() {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	_, _ = unix.Write(l.fd, one[:]) // the counter is far from full
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.writing--; l.writing == 0 && l.closed {
		_ = l.closeFD()
	}
}

// setTimer lowers a timed lane's timer to at, in nanoseconds of the monotonic
// clock.
func (l *lane) setTimer(at int64) bool {
	if at >= l.timerAt {
		return false
	}
	l.timerAt = at
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(max(at, 1))}
	return unix.TimerfdSettime(l.fd, unix.TFD_TIMER_ABSTIME, &spec, nil) == nil
}

// clear makes fd unreadable until the next frame arrives.
func (l *lane) clear() {
	switch {
	case l.timed:
		next := int64(never)
		if len(l.pending) > 0 {
			next = l.pending[0].due
		}
		if next == l.timerAt {
			return
		}
		l.timerAt = never
		if next == never {
			_ = unix.TimerfdSettime(l.fd, 0, &unix.ItimerSpec{}, nil)
			return
		}
		l.setTimer(next)
	case !l.armed || l.signals != l.cleared:
		l.armed = true
		var n [8]byte
		if _, err := unix.Read(l.fd, n[:]); err == nil { // EAGAIN: nothing to clear yet
			l.cleared += binary.NativeEndian.Uint64(n[:])
		}
	}
}

// close loses the frames on their way and closes fd.
func (l *lane) close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	var lost []*frame
	for l.ready.len() > 0 {
		lost = append(lost, l.ready.pop())
	}
	lost = append(lost, l.pending...)
	l.pending = nil
	var err error
	if l.writing == 0 {
		err = l.closeFD()
	}
	l.mu.Unlock()
	giveBack(lost)
	return err
}

func (l *lane) closeFD() error {
	err := unix.Close(l.fd)
	l.fd = -1
	return err
}

// ring is a first-in first-out queue of fixed capacity.
type ring struct {
	slots      []*frame
	head, tail uint64
}

func (r *ring) init(capacity int) {
	n := 1
	for n < capacity {
		n *= 2
	}
	r.slots = make([]*frame, n)
}

func (r *ring) len() int { return int(r.tail - r.head) }

func (r *ring) push(f *frame) {
	r.slots[r.tail&uint64(len(r.slots)-1)] = f
	r.tail++
}

func (r *ring) pop() *frame {
	f := r.slots[r.head&uint64(len(r.slots)-1)]
	r.head++
	return f
}

// dueHeap orders frames by arrival, then by sending.
type dueHeap []*frame

func (h dueHeap) Len() int { return len(h) }
func (h dueHeap) Less(i, j int) bool {
	if h[i].due != h[j].due {
		return h[i].due < h[j].due
	}
	return h[i].seq < h[j].seq
}
func (h dueHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *dueHeap) Push(x any)   { *h = append(*h, x.(*frame)) }
func (h *dueHeap) Pop() any {
	old := *h
	f := old[len(old)-1]
	*h = old[:len(old)-1]
	return f
}

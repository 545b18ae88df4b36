// SPDX-License-Identifier: Apache-2.0

package netstack

import (
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
)

// clock is the stack's clock. The stack reads it several times for a segment,
// which is a twentieth of what a request costs; while the shard's loop is at
// work, one reading a turn is exact enough for every timer and round-trip time.
//
// Timers run on goroutines of their own. One that finds itself early by the
// held reading is set again for the rest.
type clock struct {
	tcpip.Clock
	held atomic.Int64 // nanoseconds since the clock's zero; 0: not held

	// timeWait is what the stack sets the timer that ends TIME-WAIT to, and
	// ends takes the place of that timer if it returns true; see timewait.go.
	timeWait time.Duration
	ends     func(end func()) bool
}

func newClock() *clock { return &clock{Clock: tcpip.NewStdClock()} }

// NowMonotonic implements tcpip.Clock. Any goroutine may call it.
func (c *clock) NowMonotonic() tcpip.MonotonicTime {
	if t := c.held.Load(); t != 0 {
		return tcpip.MonotonicTime{}.Add(time.Duration(t))
	}
	return c.Clock.NowMonotonic()
}

// AfterFunc implements tcpip.Clock. Any goroutine may call it.
func (c *clock) AfterFunc(d time.Duration, f func()) tcpip.Timer {
	if d == c.timeWait && c.ends != nil && c.ends(f) {
		return noTimer{}
	}
	return c.Clock.AfterFunc(d, f)
}

// noTimer is a timer that is not needed.
type noTimer struct{}

func (noTimer) Stop() bool          { return true }
func (noTimer) Reset(time.Duration) {}

// HoldClock has the stack take the time of this moment for the present until
// the next call or ReleaseClock. For the shard's loop, once a turn.
func (s *Stack) HoldClock() {
	s.clock.held.Store(int64(s.clock.Clock.NowMonotonic().Sub(tcpip.MonotonicTime{})))
}

// ReleaseClock ends HoldClock: the loop is about to sleep.
func (s *Stack) ReleaseClock() { s.clock.held.Store(0) }

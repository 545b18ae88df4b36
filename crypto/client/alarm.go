// SPDX-License-Identifier: Apache-2.0

package client

import (
	"sync"
	"time"
)

// alarms wake operations whose answer is late. They share one timer, which stays
// set when the operation that it was set for has been answered: to set one wakes a
// thread of the runtime, and most operations find it set for earlier than they need
// it. While nothing is open it is not set again.
type alarms struct {
	mu    sync.Mutex
	open  map[*try]time.Time // when each is due
	timer *time.Timer
	next  time.Time // when the timer fires; zero: it is not set
}

func newAlarms() *alarms { return &alarms{open: map[*try]time.Time{}} }

// set has t woken at a time, once, instead of what it had set before.
func (a *alarms) set(t *try, due time.Time) {
	a.mu.Lock()
	a.open[t] = due
	if a.next.IsZero() || due.Before(a.next) {
		a.arm(due)
	}
	a.mu.Unlock()
}

// clear ends that. A wake-up may be on the channel already, but none follows.
func (a *alarms) clear(t *try) {
	a.mu.Lock()
	delete(a.open, t)
	a.mu.Unlock()
}

func (a *alarms) arm(at time.Time) {
	a.next = at
	if a.timer == nil {
		a.timer = time.AfterFunc(time.Until(at), a.ring)
		return
	}
	a.timer.Reset(time.Until(at))
}

// ring wakes what is due, and sets the timer for what is next.
func (a *alarms) ring() {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	a.next = time.Time{}
	var next time.Time
	for t, due := range a.open {
		switch {
		case !due.After(now):
			delete(a.open, t)
			select {
			case t.late <- struct{}{}:
			default: // it has not taken the last one yet
			}
		case next.IsZero() || due.Before(next):
			next = due
		}
	}
	if !next.IsZero() {
		a.arm(next)
	}
}

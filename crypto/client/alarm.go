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
	open  alarm // the list's head
	timer *time.Timer
	next  time.Time // when the timer fires; zero: it is not set
}

// alarm is a place in the list of who is to be woken.
type alarm struct {
	prev, next *alarm // nil: not in it
	due        time.Time
	late       chan struct{} // holds one token once it is due
}

func newAlarms() *alarms {
	a := new(alarms)
	a.open.prev, a.open.next = &a.open, &a.open
	return a
}

// set has somebody woken at a time, once, instead of what was set before.
func (a *alarms) set(t *alarm, due time.Time) {
	a.mu.Lock()
	t.due = due
	if t.next == nil {
		t.prev, t.next = a.open.prev, &a.open
		t.prev.next, a.open.prev = t, t
	}
	if a.next.IsZero() || due.Before(a.next) {
		a.arm(due)
	}
	a.mu.Unlock()
}

// clear ends that, and takes a wake-up back that has not been heard.
func (a *alarms) clear(t *alarm) {
	a.mu.Lock()
	t.leave()
	a.mu.Unlock()
	select {
	case <-t.late:
	default:
	}
}

func (t *alarm) leave() {
	if t.next != nil {
		t.prev.next, t.next.prev = t.next, t.prev
		t.prev, t.next = nil, nil
	}
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
	for t := a.open.next; t != &a.open; {
		following := t.next
		switch {
		case !t.due.After(now):
			t.leave()
			select {
			case t.late <- struct{}{}:
			default: // it has not taken the last one yet
			}
		case next.IsZero() || t.due.Before(next):
			next = t.due
		}
		t = following
	}
	if !next.IsZero() {
		a.arm(next)
	}
}

// SPDX-License-Identifier: Apache-2.0

package client

import (
	"testing"
	"time"
)

func newAlarm() *alarm { return &alarm{late: make(chan struct{}, 1)} }

// A timer that was set for one operation does for those after it, until one must be
// woken earlier.
func TestAlarmIsSetOnce(t *testing.T) {
	a := newAlarms()
	hour := time.Now().Add(time.Hour)
	one := newAlarm()
	a.set(one, hour)
	a.clear(one)
	timer := a.timer
	for i := range 1000 {
		next := newAlarm()
		a.set(next, hour.Add(time.Duration(i)*time.Millisecond))
		if !a.next.Equal(hour) || a.timer != timer {
			t.Fatalf("it is set again, to %v", a.next)
		}
		a.clear(next)
	}
	if a.open.next != &a.open {
		t.Error("some are left")
	}
	a.set(one, hour.Add(-time.Minute))
	if !a.next.Equal(hour.Add(-time.Minute)) {
		t.Errorf("it is set to %v, too late", a.next)
	}
	a.timer.Stop()
}

// Each is woken at its time, once, and not when it was cleared; then the timer
// rests.
func TestAlarmRings(t *testing.T) {
	a := newAlarms()
	now := time.Now()
	early, later, cleared := newAlarm(), newAlarm(), newAlarm()
	a.set(later, now.Add(40*time.Millisecond))
	a.set(cleared, now.Add(10*time.Millisecond))
	a.set(early, now.Add(20*time.Millisecond))
	a.clear(cleared)
	for i, tt := range []struct {
		t     *alarm
		least time.Duration
	}{{early, 20 * time.Millisecond}, {later, 40 * time.Millisecond}} {
		select {
		case <-tt.t.late:
			if took := time.Since(now); took < tt.least {
				t.Errorf("%d: woken after %v", i, took)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("%d is not woken", i)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(cleared.late) != 0 || a.open.next != &a.open || !a.next.IsZero() {
		t.Errorf("%d wake-ups, some open: %v, the timer is set to %v", len(cleared.late), a.open.next != &a.open, a.next)
	}
}

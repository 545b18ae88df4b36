// SPDX-License-Identifier: Apache-2.0

package shard

import (
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What ends a sleep ends it in the first nap, in a later one, and when the
// thread has been given to others.
func TestSleepEnds(t *testing.T) {
	s, err := newSleeper()
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	bell, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(bell)
	const session = 7
	if err := s.watch(bell, session); err != nil {
		t.Fatal(err)
	}
	for _, after := range []time.Duration{firstNap / 4, 4 * firstNap, 3 * napsEnd} {
		// Sleeps until there is work, each time for limit at most; a signal of
		// the runtime's may end one, too.
		rang := 0
		sleep := func(limit time.Duration, work func() bool) {
			start := time.Now()
			for time.Since(start) < 10*time.Second {
				s.prepare()
				if work() {
					s.cancel()
					return
				}
				for _, by := range s.park(int64(limit)) {
					if by != session {
						t.Errorf("session %d rang", by)
					}
					s.drain(bell)
					rang++
				}
			}
			t.Errorf("slept for %v", time.Since(start))
		}
		t.Run("by time after "+after.String(), func(t *testing.T) {
			start := time.Now()
			sleep(after, func() bool { return time.Since(start) >= after })
		})
		t.Run("by a waker after "+after.String(), func(t *testing.T) {
			var work atomic.Bool
			defer time.AfterFunc(after, func() { work.Store(true); s.wake() }).Stop()
			sleep(-1, work.Load)
		})
		t.Run("by a doorbell after "+after.String(), func(t *testing.T) {
			one := [8]byte{1}
			defer time.AfterFunc(after, func() { _, _ = unix.Write(bell, one[:]) }).Stop()
			sleep(-1, func() bool { return rang > 0 })
		})
	}
}

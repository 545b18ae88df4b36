// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"testing"

	"golang.org/x/sys/unix"
)

func readable(t *testing.T, l *lane) bool {
	t.Helper()
	for {
		p := []unix.PollFd{{Fd: int32(l.fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, 0)
		if err == nil {
			return n > 0
		}
		if err != unix.EINTR {
			t.Fatal(err)
		}
	}
}

// A signal may be written after the frames that it tells of were taken, and
// even after the lane was closed.
func TestLateSignal(t *testing.T) {
	l, err := newLane(8, 8, false)
	if err != nil {
		t.Fatal(err)
	}
	home := &Queue{lane: l}
	take := func(want int) {
		t.Helper()
		got, err := l.take(nil, 8)
		if err != nil || len(got) != want {
			t.Fatalf("took %d frames, %v, want %d", len(got), err, want)
		}
		l.release(len(got))
	}
	for range 3 {
		_, wake, _ := l.add([]*frame{{home: home}})
		if !wake {
			t.Fatal("an idle receiver is not signalled")
		}
		take(1)
		take(0) // its signal is not written yet
		l.signal()
		if !readable(t, l) {
			t.Fatal("not readable after a signal")
		}
		take(0)
		if readable(t, l) {
			t.Fatal("readable after a take that found nothing")
		}
	}
	if _, kicked := l.put([]*frame{{home: home}}); !kicked || !readable(t, l) {
		t.Errorf("after late signals, put signals %v, readable %v", kicked, readable(t, l))
	}
	take(1)
	take(0)

	_, _, _ = l.add([]*frame{{home: home}})
	if err := l.close(); err != nil {
		t.Fatal(err)
	}
	if l.fd < 0 {
		t.Fatal("closed under who is about to write")
	}
	l.signal()
	if l.fd >= 0 {
		t.Error("left open by who wrote last")
	}
}

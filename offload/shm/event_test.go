// SPDX-License-Identifier: Apache-2.0

package shm_test

import (
	"encoding/binary"
	"os"
	"syscall"
	"testing"
	"time"

	"pno/offload/shm"
)

const page = 4096

// eventfd makes one, and a second descriptor of the same open file: the
// process's.
func eventfd(t *testing.T) (ours, theirs int) {
	t.Helper()
	fd, _, errno := syscall.Syscall(syscall.SYS_EVENTFD2, 0, syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if errno != 0 {
		t.Fatal(errno)
	}
	theirs, err := syscall.Dup(int(fd))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Close(theirs) })
	return int(fd), theirs
}

func fill(fd int) {
	var b [8]byte
	binary.NativeEndian.PutUint64(b[:], ^uint64(0)-1)
	_, _ = syscall.Write(fd, b[:])
}

func region(t *testing.T) *shm.Region {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "session")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(page); err != nil {
		t.Fatal(err)
	}
	r, err := shm.Map(int(f.Fd()), page)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// inTime fails the test when f blocks.
func inTime(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatalf("%s blocked", what)
	}
}

func TestProcessCannotBlockInterruptOrDoorbell(t *testing.T) {
	for _, tc := range []struct {
		name  string
		spoil func(intr, bell int)
	}{
		{"counter full", func(intr, _ int) { fill(intr) }},
		{"made blocking, then full", func(intr, bell int) {
			_ = syscall.SetNonblock(intr, false)
			_ = syscall.SetNonblock(bell, false)
			fill(intr)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			intr, theirIntr := eventfd(t)
			bell, theirBell := eventfd(t)
			r := region(t)
			tr := r.NewTransport(bell)
			if err := r.OpenChannel(0, intr); err != nil {
				t.Fatal(err)
			}
			tc.spoil(theirIntr, theirBell)
			inTime(t, "Interrupt", func() { tr.Interrupt(0) })
			inTime(t, "DoorbellAck", tr.DoorbellAck)
			inTime(t, "Close", func() { _ = tr.Close(); _ = r.Close() })
		})
	}
}

// A process with threads to spare restores what the transport undoes.
func TestProcessThatKeepsBlockingIsGivenUp(t *testing.T) {
	intr, theirs := eventfd(t)
	r := region(t)
	tr := r.NewTransport(-1)
	if err := r.OpenChannel(0, intr); err != nil {
		t.Fatal(err)
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
			}
			_ = syscall.SetNonblock(theirs, true)
			fill(theirs)
			_ = syscall.SetNonblock(theirs, false)
		}
	}()
	inTime(t, "Interrupt", func() {
		for range 2000 {
			tr.Interrupt(0)
		}
	})
	close(stop)
	<-stopped
	_ = tr.Close()
	_ = r.Close()
}

func TestInterruptWakesAndDoorbellIsTaken(t *testing.T) {
	intr, theirIntr := eventfd(t)
	bell, theirBell := eventfd(t)
	r := region(t)
	tr := r.NewTransport(bell)
	if err := r.OpenChannel(0, intr); err != nil {
		t.Fatal(err)
	}
	var b [8]byte
	tr.Interrupt(0)
	tr.Interrupt(1) // never opened
	if n, err := syscall.Read(theirIntr, b[:]); n != 8 || err != nil || binary.NativeEndian.Uint64(b[:]) != 1 {
		t.Errorf("after an interrupt the process reads %d bytes, %v, %v", n, b, err)
	}
	binary.NativeEndian.PutUint64(b[:], 3)
	if _, err := syscall.Write(theirBell, b[:]); err != nil {
		t.Fatal(err)
	}
	tr.DoorbellAck()
	if _, err := syscall.Read(theirBell, b[:]); err != syscall.EAGAIN {
		t.Errorf("the doorbell was not taken: %v", err)
	}
	_ = tr.Close()
	_ = r.Close()
}

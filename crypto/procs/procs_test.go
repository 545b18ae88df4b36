// SPDX-License-Identifier: Apache-2.0

package procs

import (
	"context"
	"log/slog"
	"runtime"
	"sync"
	"testing"
	"time"
)

func TestLook(t *testing.T) {
	idle, busy, between, late := load{}, load{cores: 0.9}, load{cores: (little + much) / 2}, load{late: true}
	repeat := func(l load, n int) (all []load) {
		for range n {
			all = append(all, l)
		}
		return all
	}
	for _, tt := range []struct {
		name    string
		loads   []load
		narrow  bool
		changes int
	}{
		{"not at once", repeat(idle, lasts-1), false, 0},
		{"after a while", repeat(idle, lasts), true, 1},
		{"once", repeat(idle, 5*lasts), true, 1},
		{"a busy moment begins it anew", append(append(repeat(idle, lasts-1), busy), repeat(idle, lasts-1)...), false, 0},
		{"so do waits", append(append(repeat(idle, lasts-1), late), repeat(idle, lasts-1)...), false, 0},
		{"busy", append(repeat(idle, lasts), busy), false, 2},
		{"waits", append(repeat(idle, lasts), late), false, 2},
		{"something to do is not much", append(repeat(idle, lasts), repeat(between, 9)...), true, 1},
		{"nor is it little", repeat(between, 5*lasts), false, 0},
		{"again", append(append(repeat(idle, lasts), busy), repeat(idle, lasts)...), true, 3},
	} {
		var b breadth
		changes := 0
		for _, l := range tt.loads {
			if b.look(l) {
				changes++
			}
		}
		if b.narrow != tt.narrow || changes != tt.changes {
			t.Errorf("%s: narrow %v after %d changes, want %v, %d", tt.name, b.narrow, changes, tt.narrow, tt.changes)
		}
	}
}

// The scheduler does what was decided, and has all processors in the end.
func TestFit(t *testing.T) {
	t.Setenv("GOMAXPROCS", "") // of who runs the tests
	runtime.SetDefaultGOMAXPROCS()
	all := runtime.GOMAXPROCS(0)
	if all == 1 {
		t.Skip("one processor: there is nothing to fit")
	}
	ctx, cancel := context.WithCancel(t.Context())
	ticks, loads, ended := make(chan time.Time), make(chan load), make(chan struct{})
	go func() {
		defer close(ended)
		fit(ctx, ticks, func() load { return <-loads }, slog.New(slog.DiscardHandler))
	}()
	tick := func(l load, n int) int {
		for range n {
			ticks <- time.Time{}
			loads <- l
		}
		// What a load brings is done when the next tick is taken; that one changes nothing.
		ticks <- time.Time{}
		loads <- load{cores: (little + much) / 2}
		return runtime.GOMAXPROCS(0)
	}
	if n := tick(load{}, lasts); n != 1 {
		t.Errorf("idle: %d processors", n)
	}
	if n := tick(load{cores: 1}, 1); n != all {
		t.Errorf("busy: %d processors, want %d", n, all)
	}
	if n := tick(load{}, lasts); n != 1 {
		t.Errorf("idle again: %d processors", n)
	}
	cancel()
	<-ended
	if n := runtime.GOMAXPROCS(0); n != all {
		t.Errorf("after the end: %d processors, want %d", n, all)
	}
}

// The meter sees what this program uses, and what waits.
func TestMeter(t *testing.T) {
	m := newMeter()
	cpu := used()
	for used()-cpu < 50*time.Millisecond { // whatever else the machine does
	}
	began := m.then
	if l := m.look(); l.cores <= 0 || l.cores*float64(m.then.Sub(began)) < float64(50*time.Millisecond) {
		t.Errorf("%v of a core, for 50 ms or more in %v", l.cores, m.then.Sub(began))
	}
	if m.waits.sample == nil {
		t.Fatal("the runtime does not tell how long goroutines wait")
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	for deadline := time.Now().Add(time.Minute); ; {
		m.waits.late()
		var wg sync.WaitGroup
		for range 64 { // with one processor, all but the first wait for longer
			wg.Go(func() {
				for start := used(); used()-start < 2*time.Millisecond; {
				}
			})
		}
		wg.Wait()
		if m.look().late {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("64 goroutines of 2 ms each, one processor: nobody waited")
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

// Package procs fits the number of processors that Go's scheduler uses to what a
// daemon of the cluster has to do.
//
// While one of them is idle, Go wakes a thread for it with almost every goroutine
// that is made runnable, to see whether there is more. An operation that comes alone
// makes some three runnable, one after the other: each wake-up is a system call and an
// interrupt to a core that sleeps, the woken thread finds nothing, or takes the
// goroutine to that core, where it begins anew. That is most of what an operation
// waits for at low load. With one processor there is nobody to wake, and that is
// enough as long as the daemon uses less than part of one core, and what it has to
// run does not wait. A call into libcrypto, where signatures take their time, gives its
// processor up when the scheduler's monitor looks, after some tens of microseconds or
// more; who waits for that is counted.
//
// Fit owns its goroutine. It is for one place in a program.
package procs

import (
	"context"
	"log/slog"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// How much of a core says that one processor is enough, and that it is not. What
// one is enough for must have lasted a while: to change it stops the program for
// some ten microseconds.
const (
	every  = 100 * time.Millisecond
	little = 0.35
	much   = 0.5
	lasts  = 10 // looks
)

// load is what a look finds since the one before.
type load struct {
	cores float64 // used
	late  bool    // goroutines waited for a processor, or for the kernel to run it
}

// breadth decides. It begins with all processors.
type breadth struct {
	narrow bool
	calm   int // looks in a row with little to do
}

// look tells whether a load changes something.
func (b *breadth) look(l load) (changed bool) {
	if b.narrow {
		if l.cores > much || l.late {
			*b = breadth{}
			return true
		}
		return false
	}
	if l.cores >= little || l.late {
		b.calm = 0
		return false
	}
	b.calm++
	b.narrow = b.calm >= lasts
	return b.narrow
}

// Fit has the program use one processor while that is enough, until ctx ends. Where
// somebody has said how many there shall be (GOMAXPROCS in the environment), or there
// is one only, it does nothing.
func Fit(ctx context.Context, log *slog.Logger) {
	if os.Getenv("GOMAXPROCS") != "" || runtime.GOMAXPROCS(0) == 1 {
		return
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	fit(ctx, tick.C, newMeter().look, log)
}

// fit looks with each tick.
func fit(ctx context.Context, ticks <-chan time.Time, look func() load, log *slog.Logger) {
	defer runtime.SetDefaultGOMAXPROCS() // follows the cgroup again, too
	var b breadth
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticks:
		}
		if !b.look(look()) {
			continue
		}
		if b.narrow {
			runtime.GOMAXPROCS(1)
		} else {
			runtime.SetDefaultGOMAXPROCS()
		}
		log.Debug("number of processors in use has changed", "processors", runtime.GOMAXPROCS(0))
	}
}

// meter measures this program.
type meter struct {
	then  time.Time
	cpu   time.Duration
	waits waits
}

func newMeter() *meter {
	m := &meter{then: time.Now(), cpu: used()}
	m.waits.init()
	return m
}

func (m *meter) look() load {
	now, cpu := time.Now(), used()
	l := load{cores: float64(cpu-m.cpu) / float64(max(now.Sub(m.then), time.Millisecond)), late: m.waits.late()}
	m.then, m.cpu = now, cpu
	return l
}

// used is the processor time of this program so far.
func used() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &ts); err != nil {
		return 0 // no Linux lacks that clock
	}
	return time.Duration(ts.Nano())
}

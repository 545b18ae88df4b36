// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"runtime"
	"time"
)

// maxSpin bounds what hostd asks for: a Go program has other goroutines to run.
const maxSpin = 50 * time.Microsecond

// poller is the state of one session's poller goroutine.
type poller struct {
	s      *session
	budget time.Duration // of the next spin; each failure halves it
	rest   int           // sleeps since the last spin
}

// poll is the poller goroutine: it drains the lanes and wakes whom that
// concerns; without work it spins a little, arms the interrupts, looks again,
// and sleeps in the runtime's network poller (protocol.md, section 5).
//
// Readers drain their own lane, too, but only in passing: an interrupt that was
// asked for comes in any case once records have been published, and then this
// goroutine looks.
func (s *session) poll() {
	p := poller{s: s, budget: s.spin}
	for !s.lost.Load() {
		if p.turn() {
			// Whoever was woken reads now, which frees ring space.
			runtime.Gosched()
			continue
		}
		if p.spin() || !p.arm() {
			continue
		}
		if !s.checkStatus() {
			return
		}
		s.counters.inc(statSleeps)
		if err := s.sleeper.sleep(); err != nil {
			s.lose("the poller cannot sleep: " + err.Error())
			return
		}
		s.counters.inc(statWakeups)
		if !p.turn() {
			s.counters.inc(statWakeupsEmpty)
			s.checkStatus()
		}
	}
}

// turn looks into every lane once.
func (p *poller) turn() (work bool) {
	for _, l := range p.s.lanes {
		l.rx.Lock()
		if l.drain() {
			work = true
		}
		l.rx.Unlock()
		if l.wantSpace.Load() && l.serveSpace() {
			work = true
		}
	}
	return work
}

// spin polls for a while before sleeping, as long as that has paid off lately.
func (p *poller) spin() bool {
	if p.budget < 500*time.Nanosecond {
		if p.rest++; p.rest < 64 || p.s.spin == 0 {
			return false
		}
		p.rest, p.budget = 0, p.s.spin/4
	}
	p.s.counters.inc(statSpins)
	for begin := time.Now(); time.Since(begin) < p.budget; {
		if p.turn() {
			p.s.counters.inc(statSpinsHit)
			p.budget = p.s.spin
			return true
		}
		runtime.Gosched()
	}
	p.budget /= 2
	return false
}

// arm asks every lane's DPU for an interrupt; false: something has come.
func (p *poller) arm() bool {
	for i, l := range p.s.lanes {
		if l.arm() {
			continue
		}
		for _, before := range p.s.lanes[:i] {
			before.disarm()
		}
		return false
	}
	return true
}

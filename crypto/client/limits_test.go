// SPDX-License-Identifier: Apache-2.0

package client

import (
	"testing"
	"time"
)

func TestBudget(t *testing.T) {
	b := newBudget()
	now := time.Now()
	spent := func() (n int) {
		for b.spend(now) {
			n++
		}
		return n
	}
	if n := spent(); n != budgetMost {
		t.Errorf("%d repetitions at once, want %d", n, budgetMost)
	}
	for range 100 {
		b.earn()
	}
	if n := spent(); n < 19 || n > 20 {
		t.Errorf("%d repetitions for 100 operations, want a fifth", n)
	}
	now = now.Add(time.Second)
	if n := spent(); n < budgetFloor-1 || n > budgetFloor {
		t.Errorf("%d repetitions after a second, want %d", n, budgetFloor)
	}
	now = now.Add(-time.Hour) // a clock that goes back gives nothing
	if n := spent(); n != 0 {
		t.Errorf("%d repetitions for a clock that went back", n)
	}
	now = now.Add(10 * time.Hour)
	if n := spent(); n != budgetMost {
		t.Errorf("%d repetitions after a long time, want %d", n, budgetMost)
	}
}

func TestBreaker(t *testing.T) {
	var b breaker
	now := time.Now()
	for i := range breakAfter {
		if !b.ready(now) {
			t.Fatalf("open after %d failures", i)
		}
		if opened := b.bad(now); opened != (i == breakAfter-1) {
			t.Errorf("failure %d opened: %v", i+1, opened)
		}
	}
	for pause := pauseFirst; ; pause = min(2*pause, pauseMost) {
		if b.ready(now.Add(pause)) || !b.ready(now.Add(pause+1)) {
			t.Fatalf("not open for %v", pause)
		}
		now = now.Add(pause + 1)
		b.asked(now) // one is let through
		if b.ready(now) {
			t.Fatal("a second one is let through")
		}
		b.bad(now)
		if pause == pauseMost {
			break
		}
	}
	b.good()
	if !b.ready(now) {
		t.Error("open after a success")
	}
	b.trip(now, time.Minute)
	if b.ready(now.Add(time.Minute)) || !b.ready(now.Add(time.Minute+1)) {
		t.Error("not kept out for as long as was said")
	}
}

func TestPace(t *testing.T) {
	var p pace
	if got := p.late(); got != hedgeFirst {
		t.Errorf("nothing known: late after %v", got)
	}
	for range 200 {
		p.learn(10 * time.Millisecond)
	}
	if got := p.late(); got < 10*time.Millisecond || got > 12*time.Millisecond {
		t.Errorf("steady 10 ms: late after %v", got)
	}
	for range 200 {
		p.learn(10 * time.Microsecond)
	}
	if got := p.late(); got != hedgeLeast {
		t.Errorf("steady 10 µs: late after %v", got)
	}
	for range 200 {
		p.learn(time.Second)
	}
	if got := p.late(); got != hedgeMost {
		t.Errorf("steady 1 s: late after %v", got)
	}
}

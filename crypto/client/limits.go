// SPDX-License-Identifier: Apache-2.0

package client

import (
	"sync"
	"time"
)

// budget bounds how many operations are asked for more than once: a share of
// all, so that a cluster in trouble is not given the double of its load.
type budget struct {
	mu     sync.Mutex
	tokens float64
	last   time.Time
}

const (
	budgetMost  = 128
	budgetShare = 0.2 // of a token for each operation
	budgetFloor = 20  // tokens a second, whatever the load
)

func newBudget() *budget { return &budget{tokens: budgetMost} }

func (b *budget) earn() {
	b.mu.Lock()
	b.tokens = min(budgetMost, b.tokens+budgetShare)
	b.mu.Unlock()
}

func (b *budget) spend(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.last.IsZero() {
		b.tokens = min(budgetMost, b.tokens+max(0, now.Sub(b.last).Seconds())*budgetFloor)
	}
	b.last = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// breaker keeps operations away from a worker that fails. After a while one is
// let through to see.
type breaker struct {
	mu       sync.Mutex
	failures int // in a row
	opened   time.Time
	until    time.Time
	pause    time.Duration // 0: closed, operations pass
}

const (
	breakAfter = 5
	pauseFirst = 100 * time.Millisecond
	pauseMost  = 10 * time.Second
)

// ready tells whether the worker may be asked, without asking.
func (b *breaker) ready(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.pause == 0 || now.After(b.until)
}

// openedAfter tells whether the worker is kept out, and was not yet at that time.
func (b *breaker) openedAfter(t time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.pause > 0 && b.opened.After(t)
}

// asked notes that an operation went there: the next may when this one has had
// its time.
func (b *breaker) asked(now time.Time) {
	b.mu.Lock()
	if b.pause > 0 {
		b.until = now.Add(b.pause)
	}
	b.mu.Unlock()
}

func (b *breaker) good() {
	b.mu.Lock()
	b.failures, b.pause = 0, 0
	b.mu.Unlock()
}

// bad notes a failure, and tells whether it opened the circuit.
func (b *breaker) bad(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.failures++
	if b.failures < breakAfter && b.pause == 0 {
		return false
	}
	opened := b.pause == 0
	if opened {
		b.opened = now
	}
	b.pause = min(max(2*b.pause, pauseFirst), max(b.pause, pauseMost))
	b.until = now.Add(b.pause)
	return opened
}

// trip opens the circuit at once.
func (b *breaker) trip(now time.Time, pause time.Duration) {
	b.mu.Lock()
	if b.pause == 0 {
		b.opened = now
	}
	b.pause = max(b.pause, pause)
	b.until = now.Add(b.pause)
	b.mu.Unlock()
}

// pace learns how long answers take, the way TCP learns its round trip.
type pace struct {
	mu        sync.Mutex
	mean, dev time.Duration
}

const (
	hedgeLeast = 2 * time.Millisecond
	hedgeMost  = 250 * time.Millisecond
	hedgeFirst = 50 * time.Millisecond
)

func (p *pace) learn(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mean == 0 {
		p.mean, p.dev = d, d/2
		return
	}
	off := d - p.mean
	p.mean += off / 16
	if off < 0 {
		off = -off
	}
	p.dev += (off - p.dev) / 8
}

// late is after how long an answer is late.
func (p *pace) late() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mean == 0 {
		return hedgeFirst
	}
	return min(max(p.mean+6*p.dev, hedgeLeast), hedgeMost)
}

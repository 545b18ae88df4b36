// SPDX-License-Identifier: Apache-2.0

// Package simcard is a model of an accelerator card: a ring of a certain depth,
// a latency, and a number of operations a second. It says that it is simulated
// wherever it shows.
//
// The signatures are real; another engine makes them. So that the model can be
// faster than this machine's processors, the card remembers them: the same
// input is signed once, and answered from memory at the card's pace after that.
// A figure taken with it says what the way to such a card can carry, not what
// any hardware does.
//
// The card owns the engine behind it and one goroutine, which calls the sink.
// Any goroutine may call its methods; see package engine for who owns what.
package simcard

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"
	"time"

	"pno/crypto/engine"
	"pno/crypto/signing"
)

// Config is the card. Zero values mean a ring of 512, 100 µs and 40,000
// operations a second, which is what vendors say of RSA-2048 on one card.
//
// Results are taken off the ring every Poll (0: 100 µs), as drivers of cards do,
// for an interrupt for each would cost more than the signature saves.
type Config struct {
	Poll    time.Duration
	Ring    int
	Latency time.Duration
	Rate    float64
}

// batch is what drivers put on the ring at once.
const batch = 16

// memory bounds how many signatures are remembered.
const memory = 4096

type card struct {
	cfg    Config
	sink   engine.Sink
	behind engine.Engine
	info   engine.Info

	mu     sync.Mutex
	held   int
	free   time.Time // when the card has done what it was given
	due    []item    // in order of time
	known  map[question][]byte
	closed bool
	some   chan struct{}
	done   chan struct{}
}

type item struct {
	op *engine.Op
	at time.Time
}

// question is an operation as the memory knows it.
type question struct {
	key  *key
	what [sha256.Size]byte
}

type key struct{ engine.Key }

// New plugs a card in; open starts the engine behind it.
func New(cfg Config, open func(engine.Sink) (engine.Engine, error), sink engine.Sink) (engine.Engine, error) {
	if cfg.Ring == 0 {
		cfg.Ring = 512
	}
	if cfg.Latency == 0 {
		cfg.Latency = 100 * time.Microsecond
	}
	if cfg.Rate == 0 {
		cfg.Rate = 40_000
	}
	if cfg.Poll == 0 {
		cfg.Poll = 100 * time.Microsecond
	}
	if cfg.Poll < 0 || cfg.Ring < 0 || cfg.Latency < 0 || cfg.Rate < 0 {
		return nil, errors.New("start simulated card: negative settings")
	}
	c := &card{cfg: cfg, sink: sink, known: map[question][]byte{}, some: make(chan struct{}, 1), done: make(chan struct{})}
	behind, err := open(c.computed)
	if err != nil {
		return nil, fmt.Errorf("start simulated card: %w", err)
	}
	c.behind = behind
	c.info = engine.Info{Kind: "simcard", Detail: fmt.Sprintf("simulated card: ring of %d, %v, %.0f operations/s; signatures by %s", cfg.Ring, cfg.Latency, cfg.Rate, behind.Info().Kind),
		Capacity: min(cfg.Ring, behind.Info().Capacity), Batch: batch, Simulated: true, Verifies: behind.Info().Verifies, Features: behind.Info().Features}
	c.info.Window = cfg.window(c.info.Capacity)
	go c.run()
	return c, nil
}

// window is what keeps the card busy: what it does while results are on their way,
// and while its driver is late by some milliseconds.
func (cfg *Config) window(capacity int) int {
	away := cfg.Latency + cfg.Poll + 4*time.Millisecond
	return int(min(float64(batch)+cfg.Rate*away.Seconds(), float64(capacity)))
}

func (c *card) Info() engine.Info { return c.info }

func (c *card) Load(m engine.Material) (engine.Key, error) {
	k, err := c.behind.Load(m)
	if err != nil {
		return nil, err
	}
	return &cardKey{key: &key{k}, card: c}, nil
}

type cardKey struct {
	key  *key
	card *card
}

// Close forgets the signatures too.
func (k *cardKey) Close() {
	k.card.mu.Lock()
	for q := range k.card.known {
		if q.key == k.key {
			delete(k.card.known, q)
		}
	}
	k.card.mu.Unlock()
	k.key.Close()
}

func ask(k *cardKey, t *signing.Task) question {
	h := sha256.New()
	h.Write([]byte{byte(t.Scheme >> 8), byte(t.Scheme)})
	h.Write(t.Data)
	q := question{key: k.key}
	h.Sum(q.what[:0])
	return q
}

// asked is the owner of an operation that the engine behind has.
type asked struct {
	op *engine.Op // the caller's
	q  question
}

func (c *card) Submit(ops []*engine.Op) int {
	now := time.Now()
	var compute []*engine.Op
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return 0
	}
	n := min(len(ops), c.info.Capacity-c.held)
	c.held += n
	for _, op := range ops[:n] {
		k := op.Key.(*cardKey)
		q := ask(k, &op.Task)
		out, known := c.known[q]
		switch {
		case !op.Deadline.IsZero() && now.After(op.Deadline):
			op.Err = signing.Errorf(signing.DeadlineExceeded, "waited too long in the queue")
			c.schedule(op, now)
		case known:
			op.Out = append([]byte(nil), out...)
			c.schedule(op, now)
		default:
			compute = append(compute, &engine.Op{Key: k.key.Key, Task: op.Task, Deadline: op.Deadline, Owner: &asked{op, q}})
		}
	}
	c.mu.Unlock()
	c.wake()
	if taken := c.behind.Submit(compute); taken < len(compute) {
		// It cannot be: what is held never exceeds the capacity behind.
		for _, op := range compute[taken:] {
			op.Err = signing.Errorf(signing.Overloaded, "the engine behind the card is full")
		}
		c.computed(compute[taken:])
	}
	return n
}

// computed is the sink of the engine behind.
func (c *card) computed(done []*engine.Op) {
	now := time.Now()
	c.mu.Lock()
	for _, d := range done {
		a := d.Owner.(*asked)
		a.op.Out, a.op.Err = d.Out, d.Err
		if d.Err == nil && !d.Task.Decrypt {
			if len(c.known) >= memory {
				clear(c.known)
			}
			c.known[a.q] = append([]byte(nil), d.Out...)
		}
		c.schedule(a.op, now)
	}
	c.mu.Unlock()
	c.wake()
}

// schedule says when the card is done with an operation. The lock is held.
func (c *card) schedule(op *engine.Op, now time.Time) {
	start := now
	if c.free.After(now) {
		start = c.free
	}
	c.free = start.Add(time.Duration(float64(time.Second) / c.cfg.Rate))
	op.Started, op.Exec = start, c.free.Sub(start)
	c.due = append(c.due, item{op, c.free.Add(c.cfg.Latency)})
}

func (c *card) wake() {
	select {
	case c.some <- struct{}{}:
	default:
	}
}

func (c *card) run() {
	defer close(c.done)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var ready []*engine.Op
	for {
		now := time.Now()
		next := time.Hour
		ready = ready[:0]
		c.mu.Lock()
		n := 0
		for n < len(c.due) && !c.due[n].at.After(now) {
			ready = append(ready, c.due[n].op)
			n++
		}
		c.due = append(c.due[:0], c.due[n:]...)
		if len(c.due) > 0 {
			next = max(c.due[0].at.Sub(now), c.cfg.Poll)
		}
		c.held -= n
		c.mu.Unlock()
		if n > 0 {
			c.sink(ready)
			clear(ready)
		}
		c.mu.Lock()
		over := c.closed && c.held == 0
		c.mu.Unlock()
		if over {
			return
		}
		timer.Reset(next)
		if next < time.Hour {
			<-timer.C // nothing is due before that
			continue
		}
		select {
		case <-c.some:
		case <-timer.C:
		}
	}
}

func (c *card) Close() error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.wake()
	<-c.done
	return c.behind.Close()
}

// SPDX-License-Identifier: Apache-2.0

package client

import (
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Cluster is a set of workers that hold the same keys.
type Cluster struct {
	cfg    Config
	budget *budget
	pace   pace
	stats  stats
	tries  sync.Pool // of *try
	alarms *alarms
	follow *follower
	next   atomic.Bool  // there is another tier after this one
	down   atomic.Int64 // since when no worker is connected, Unix nanoseconds; 0: one is

	mu      sync.Mutex // for the list, and closed
	workers atomic.Pointer[[]*worker]
	changed chan struct{} // closed and replaced when a worker connects
	closed  bool
	gone    sync.WaitGroup // workers that left the list

	keys publicKeys
}

// NewCluster begins to connect, and returns at once.
func NewCluster(cfg Config) (*Cluster, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	c := &Cluster{cfg: cfg, budget: newBudget(), alarms: newAlarms(), changed: make(chan struct{})}
	c.workers.Store(&[]*worker{})
	c.down.Store(time.Now().UnixNano())
	f, err := follow(cfg.Workers, c.setWorkers, func(err error) {
		cfg.Log.Warn("workers cannot be looked up", "cluster", cfg.Name, "reason", err)
	})
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	c.mu.Lock()
	c.follow = f
	c.mu.Unlock()
	return c, nil
}

// Name is that of the configuration.
func (c *Cluster) Name() string { return c.cfg.Name }

func (c *Cluster) setWorkers(addrs []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || len(addrs) == 0 {
		return // an empty answer is more likely a fault than the truth
	}
	var next []*worker
	for _, w := range *c.workers.Load() {
		if slices.Contains(addrs, w.addr) {
			next = append(next, w)
			continue
		}
		c.gone.Add(1)
		go func() {
			defer c.gone.Done()
			_ = w.close() // its operations fail over
		}()
	}
	for _, a := range addrs {
		if slices.ContainsFunc(next, func(w *worker) bool { return w.addr == a }) {
			continue
		}
		w, err := newWorker(c, a)
		if err != nil {
			c.cfg.Log.Error("worker left out", "reason", err)
			continue
		}
		next = append(next, w)
	}
	c.workers.Store(&next)
}

// again looks the workers up anew, for one is gone.
func (c *Cluster) again() {
	c.mu.Lock()
	f := c.follow
	c.mu.Unlock()
	if f != nil {
		f.again()
	}
}

func (c *Cluster) wake() {
	c.mu.Lock()
	close(c.changed)
	c.changed = make(chan struct{})
	c.mu.Unlock()
}

// Close ends the connections. Operations that are open fail.
func (c *Cluster) Close() error {
	c.mu.Lock()
	c.closed = true
	f := c.follow
	c.mu.Unlock()
	if f != nil {
		f.close()
	}
	var errs []error
	for _, w := range *c.workers.Load() {
		errs = append(errs, w.close())
	}
	c.gone.Wait()
	return errors.Join(errs...)
}

// pick takes the less busy of two workers that were not tried yet. When every
// one of them is kept out by its breaker, one of those is better than none.
func (c *Cluster) pick(tried []*worker, now time.Time) *worker {
	all := *c.workers.Load()
	var room [2][8]*worker // keeps the usual cluster off the heap
	good, rest := room[0][:0], room[1][:0]
	for _, w := range all {
		if slices.Contains(tried, w) || !w.up() {
			continue
		}
		if w.breaker.ready(now) {
			good = append(good, w)
		} else {
			rest = append(rest, w)
		}
	}
	if len(good) == 0 {
		good = rest
	}
	switch len(good) {
	case 0:
		return nil
	case 1:
		return good[0]
	}
	i := rand.IntN(len(good))
	j := rand.IntN(len(good) - 1)
	if j >= i {
		j++
	}
	a, b := good[i], good[j]
	if b.outstanding.Load() < a.outstanding.Load() {
		return b
	}
	return a
}

// connected notes that a worker is, and lost that one may have been the last.
func (c *Cluster) connected() { c.down.Store(0) }

func (c *Cluster) lost() {
	if !slices.ContainsFunc(*c.workers.Load(), (*worker).up) {
		c.down.CompareAndSwap(0, time.Now().UnixNano())
	}
	if slices.ContainsFunc(*c.workers.Load(), (*worker).up) {
		c.connected() // meanwhile
	}
}

// patience is until when an operation waits for a worker: not at all when who asks
// has another place to go. When there is another tier, an outage is waited for
// once, not by every operation. When there is none,
// and nobody has said how long, an outage no older than operations may take is
// waited for as long as they may: there is nothing better to do, and workers that
// start again are back by then.
func (c *Cluster) patience(op *Op, now, deadline time.Time) time.Time {
	if op.Next {
		return now
	}
	until := now.Add(orDefault(c.cfg.Wait, DefaultWait))
	if down := c.down.Load(); down != 0 {
		began := time.Unix(0, down)
		if c.next.Load() {
			until = began.Add(orDefault(c.cfg.Wait, DefaultWait))
		} else if last := began.Add(deadline.Sub(now)); c.cfg.Wait == 0 && last.After(until) {
			until = last
		}
	}
	if until.After(deadline) {
		return deadline
	}
	return until
}

// ready waits until a worker is connected.
func (c *Cluster) ready(until time.Time) bool {
	if slices.ContainsFunc(*c.workers.Load(), (*worker).up) {
		return true
	}
	left := time.Until(until)
	if left <= 0 {
		return false
	}
	timer := time.NewTimer(left)
	defer timer.Stop()
	for {
		c.mu.Lock()
		changed := c.changed
		c.mu.Unlock()
		if slices.ContainsFunc(*c.workers.Load(), (*worker).up) {
			return true
		}
		select {
		case <-changed:
		case <-timer.C:
			return false
		}
	}
}

// verifies tells whether signatures of this kind are verified here.
func (c *Cluster) verifies(op *Op) bool {
	return c.cfg.Verify == VerifyAll || c.cfg.Verify == VerifyRSA && op.Scheme.RSA()
}

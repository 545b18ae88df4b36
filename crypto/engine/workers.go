// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"sync"
	"time"

	"pno/crypto/signing"
)

// Workers is the bounded queue and the threads behind an engine that computes
// on this machine's processors.
type Workers struct {
	run   func(worker int, ops []*Op)
	sink  Sink
	n     int
	batch int

	mu     sync.Mutex
	some   sync.Cond
	ring   []*Op
	head   int
	queued int
	held   int // queued, or being computed
	closed bool
	done   sync.WaitGroup
}

// NewWorkers starts n workers that hold at most depth operations together. Each
// calls run with 1 to batch operations, whose deadline has not passed; run
// fills in Out or Err.
func NewWorkers(n, depth, batch int, run func(worker int, ops []*Op), sink Sink) *Workers {
	w := &Workers{run: run, sink: sink, n: n, batch: batch, ring: make([]*Op, depth)}
	w.some.L = &w.mu
	w.done.Add(n)
	for i := range n {
		go w.work(i)
	}
	return w
}

// Submit is that of Engine.
func (w *Workers) Submit(ops []*Op) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return 0
	}
	n := min(len(ops), len(w.ring)-w.held)
	for _, op := range ops[:n] {
		w.ring[(w.head+w.queued)%len(w.ring)] = op
		w.queued++
	}
	w.held += n
	for range min(n, w.n) {
		w.some.Signal()
	}
	return n
}

// Close lets the workers finish what is queued, and waits for them.
func (w *Workers) Close() {
	w.mu.Lock()
	w.closed = true
	w.some.Broadcast()
	w.mu.Unlock()
	w.done.Wait()
}

// take blocks until there is something to do; nothing means the end. A worker
// leaves their share to the others: a batch saves overhead, but its first
// operation waits for its last.
func (w *Workers) take(into []*Op) []*Op {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.queued == 0 {
		if w.closed {
			return nil
		}
		w.some.Wait()
	}
	share := (w.queued + w.n - 1) / w.n
	for range min(share, w.batch) {
		into = append(into, w.ring[w.head])
		w.ring[w.head] = nil
		w.head = (w.head + 1) % len(w.ring)
		w.queued--
	}
	return into
}

func (w *Workers) work(worker int) {
	defer w.done.Done()
	batch := make([]*Op, 0, w.batch)
	live := make([]*Op, 0, w.batch)
	for {
		batch, live = w.take(batch[:0]), live[:0]
		if len(batch) == 0 {
			return
		}
		start := time.Now()
		for _, op := range batch {
			if !op.Deadline.IsZero() && start.After(op.Deadline) {
				op.Err = signing.Errorf(signing.DeadlineExceeded, "waited too long in the queue")
				continue
			}
			op.Started = start
			live = append(live, op)
		}
		if len(live) > 0 {
			w.run(worker, live)
			exec := time.Since(start) / time.Duration(len(live))
			for _, op := range live {
				op.Exec = exec
			}
		}
		w.mu.Lock()
		w.held -= len(batch)
		w.mu.Unlock()
		w.sink(batch)
		clear(batch)
		clear(live)
	}
}

// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"sync"
	"time"

	"pno/crypto/signing"
)

// Workers is the bounded queue and the threads behind an engine that computes
// on this machine's processors. Each has a place to compute in, which who submits
// an operation may borrow.
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
	held   int   // queued, or being computed
	places []int // where nobody computes
	closed bool
	done   sync.WaitGroup
}

// NewWorkers starts n workers that hold at most depth operations together. Each
// calls run with 1 to batch operations, whose deadline has not passed; run
// fills in Out or Err.
func NewWorkers(n, depth, batch int, run func(worker int, ops []*Op), sink Sink) *Workers {
	w := &Workers{run: run, sink: sink, n: n, batch: batch, ring: make([]*Op, depth)}
	w.some.L = &w.mu
	for i := range n {
		w.places = append(w.places, i)
		w.done.Go(w.work)
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

// SubmitHere is that of Here.
func (w *Workers) SubmitHere(op *Op) bool {
	w.mu.Lock()
	n := len(w.places)
	if w.closed || w.queued > 0 || n == 0 || w.held == len(w.ring) {
		w.mu.Unlock()
		return false
	}
	place := w.places[n-1]
	w.places = w.places[:n-1]
	w.held++
	w.done.Add(1)
	w.mu.Unlock()
	defer w.done.Done()
	one := []*Op{op}
	w.compute(place, one, one)
	return true
}

// Close lets the workers finish what is queued, and waits for them.
func (w *Workers) Close() {
	w.mu.Lock()
	w.closed = true
	w.some.Broadcast()
	w.mu.Unlock()
	w.done.Wait()
}

// take blocks until there is something to do, and a place to do it in; nothing
// means the end. A worker leaves their share to the others: a batch saves overhead,
// but its first operation waits for its last.
func (w *Workers) take(into []*Op) (place int, batch []*Op) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.queued == 0 || len(w.places) == 0 {
		if w.closed && w.queued == 0 {
			return 0, nil
		}
		w.some.Wait()
	}
	last := len(w.places) - 1
	place, w.places = w.places[last], w.places[:last]
	share := (w.queued + w.n - 1) / w.n
	for range min(share, w.batch) {
		into = append(into, w.ring[w.head])
		w.ring[w.head] = nil
		w.head = (w.head + 1) % len(w.ring)
		w.queued--
	}
	if w.closed && w.queued == 0 {
		w.some.Broadcast() // to those that wait for a place
	}
	return place, into
}

func (w *Workers) work() {
	batch := make([]*Op, 0, w.batch)
	live := make([]*Op, w.batch)
	for {
		place, ops := w.take(batch[:0])
		if len(ops) == 0 {
			return
		}
		w.compute(place, ops, live)
		clear(ops)
		clear(live)
	}
}

// compute does a batch, for which there is room in live, and gives it to the sink.
func (w *Workers) compute(place int, batch, live []*Op) {
	live = live[:0]
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
		w.run(place, live)
		exec := time.Since(start) / time.Duration(len(live))
		for _, op := range live {
			op.Exec = exec
		}
	}
	w.mu.Lock()
	w.held -= len(batch)
	w.places = append(w.places, place)
	if w.queued > 0 {
		w.some.Signal() // to a worker that had no place
	}
	w.mu.Unlock()
	w.sink(batch)
}

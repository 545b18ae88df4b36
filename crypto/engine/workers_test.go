// SPDX-License-Identifier: Apache-2.0

package engine_test

import (
	"sync"
	"testing"
	"time"

	"pno/crypto/engine"
	"pno/crypto/engine/enginetest"
	"pno/crypto/signing"
)

// blocking is a pool of workers each of which computes until it is let go.
type blocking struct {
	*engine.Workers
	begun chan int // the place
	goOn  chan struct{}
	done  *enginetest.Collector
}

func newBlocking(n int) *blocking {
	b := &blocking{begun: make(chan int, 64), goOn: make(chan struct{}), done: enginetest.NewCollector(64)}
	b.Workers = engine.NewWorkers(n, 8, 1, func(place int, ops []*engine.Op) {
		b.begun <- place
		<-b.goOn
	}, b.done.Sink)
	return b
}

func (b *blocking) submit(t *testing.T, n int) {
	t.Helper()
	for range n {
		if b.Submit([]*engine.Op{new(engine.Op)}) != 1 {
			t.Fatal("not taken")
		}
	}
}

// SubmitHere has the sink called before it returns, counts as one of the
// computations at once, and takes nothing while others compute or wait.
func TestSubmitHere(t *testing.T) {
	var sunk []*engine.Op
	w := engine.NewWorkers(1, 4, 1, func(_ int, ops []*engine.Op) { ops[0].Out = []byte{1} }, func(ops []*engine.Op) { sunk = append(sunk, ops...) })
	op := &engine.Op{}
	if !w.SubmitHere(op) || len(sunk) != 1 || sunk[0] != op || len(op.Out) != 1 || op.Started.IsZero() {
		t.Errorf("got %v, %+v", sunk, op)
	}
	late := &engine.Op{Deadline: time.Now().Add(-time.Second)}
	if !w.SubmitHere(late) || signing.StatusOf(late.Err) != signing.DeadlineExceeded || late.Out != nil {
		t.Errorf("after its deadline: %+v", late)
	}
	w.Close()
	if w.SubmitHere(op) {
		t.Error("taken after the end")
	}
}

func TestSubmitHereBusy(t *testing.T) {
	b := newBlocking(2)
	here := make(chan bool, 1)
	go func() { here <- b.SubmitHere(new(engine.Op)) }()
	first := <-b.begun
	b.submit(t, 1)
	if second := <-b.begun; second == first {
		t.Error("two compute in one place")
	}
	if b.SubmitHere(new(engine.Op)) {
		t.Error("taken while all places are in use")
	}
	b.submit(t, 3) // one worker has a place to come by
	select {
	case <-b.begun:
		t.Error("three compute in two places")
	default:
	}
	if b.SubmitHere(new(engine.Op)) {
		t.Error("taken before those that wait")
	}
	for range 5 {
		b.goOn <- struct{}{}
	}
	if !<-here {
		t.Error("not taken by idle workers")
	}
	b.done.Wait(t, 5)
	b.Close()
}

// Close waits for what is computed elsewhere, and for what waits for its place.
func TestSubmitHereClose(t *testing.T) {
	b := newBlocking(3)
	var callers sync.WaitGroup
	for range 3 {
		callers.Go(func() { b.SubmitHere(new(engine.Op)) })
	}
	for range 3 {
		<-b.begun
	}
	b.submit(t, 4)
	closed := make(chan struct{})
	go func() { b.Close(); close(closed) }()
	for range 7 {
		select {
		case <-closed:
			t.Fatal("closed with operations open")
		case b.goOn <- struct{}{}:
		case <-time.After(30 * time.Second):
			t.Fatal("nobody computes what waits")
		}
	}
	select {
	case <-closed:
	case <-time.After(30 * time.Second):
		t.Fatal("it does not end")
	}
	callers.Wait()
	b.done.Wait(t, 7)
}

// A lone submitter pays no memory for the borrowed place but the slice of one.
func TestSubmitHereAllocations(t *testing.T) {
	w := engine.NewWorkers(1, 4, 1, func(int, []*engine.Op) {}, func([]*engine.Op) {})
	defer w.Close()
	op := new(engine.Op)
	if n := testing.AllocsPerRun(100, func() { w.SubmitHere(op) }); n > 1 {
		t.Errorf("%.1f allocations", n)
	}
}

// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pno/crypto/signing"
	cryptov1 "pno/proto/pno/crypto/v1"
)

// taker is a worker's stream that takes what is sent.
type taker struct {
	cryptov1.CryptoService_OperateClient
	t      *testing.T
	busy   atomic.Bool
	sends  int
	got    map[uint64]int
	before func() // each Send; may be nil
	ended  <-chan struct{}
}

func (k *taker) Send(req *cryptov1.OperateRequest) error {
	if k.busy.Swap(true) {
		k.t.Error("two send at once")
	}
	defer k.busy.Store(false)
	if k.before != nil {
		k.before()
	}
	k.sends++
	for _, op := range req.Operations {
		k.got[op.Id]++
	}
	return nil
}

func (k *taker) Recv() (*cryptov1.OperateResponse, error) {
	<-k.ended
	return nil, io.EOF
}

func newLink(t *testing.T, cfg Config) (*link, *taker) {
	cfg.Log = slog.New(slog.DiscardHandler)
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	k := &taker{t: t, got: map[uint64]int{}, ended: ctx.Done()}
	w := &worker{cluster: &Cluster{cfg: cfg}}
	return &link{w: w, stream: k, cancel: cancel, some: make(chan struct{}, 1), broken: make(chan error, 1),
		open: map[uint64]attempt{}, inflight: 1 << 20, heard: time.Now()}, k
}

func (l *link) ask(t *testing.T, op *Op, to chan answer) {
	t.Helper()
	if !l.send(op, time.Second, to, 1<<20, time.Now()) {
		t.Error("not taken")
	}
}

// An operation alone is on the stream before send returns, in a message of its own,
// and nobody is woken for it: the link has no goroutine here. It costs no memory.
func TestCallerWrites(t *testing.T) {
	l, k := newLink(t, Config{})
	op := &Op{Request: signing.Request{Data: make([]byte, 32)}}
	to := make(chan answer, 1)
	for i := range 20 {
		l.ask(t, op, to)
		if k.sends != i+1 || k.got[uint64(i+1)] != 1 || len(l.some) != 0 || l.writing || len(l.queue) != 0 {
			t.Fatalf("operation %d: %d messages, %d wake-ups, %d left", i, k.sends, len(l.some), len(l.queue))
		}
		clear(l.open)
	}
	if n := testing.AllocsPerRun(100, func() {
		l.ask(t, op, to)
		clear(l.open)
	}); n > 0 {
		t.Errorf("%.1f allocations an operation", n)
	}
}

// While another one is open, gRPC may wait for the worker to read: the link's
// goroutine writes, all there is in one message. And it is the caller again when one
// has come alone.
func TestCallerDoesNotWait(t *testing.T) {
	l, k := newLink(t, Config{})
	op := &Op{Request: signing.Request{Data: make([]byte, signing.MaxInput)}}
	to := make(chan answer, 1)
	const n = 100
	for range n {
		l.ask(t, op, to)
	}
	if k.sends != 1 || len(l.some) != 1 || !l.writing || !l.since.IsZero() {
		t.Errorf("%d messages of %d operations by their callers; %d wake-ups", k.sends, n, len(l.some))
	}
	stop := make(chan struct{})
	relieved := make(chan struct{})
	go func() { l.relieve(stop); close(relieved) }()
	idle(t, l)
	close(stop)
	<-relieved
	if k.sends != 2 || len(k.got) != n {
		t.Errorf("%d messages, %d operations", k.sends, len(k.got))
	}
	clear(l.open)
	l.ask(t, op, to)
	if len(l.some) != 1 {
		t.Error("the first one after many is not left to the link's goroutine, which may find others")
	}
	<-l.some
	l.write()
	clear(l.open)
	l.ask(t, op, to)
	if len(l.some) != 0 || l.writing || k.sends != 4 {
		t.Errorf("the caller does not write when there were no others; %d messages", k.sends)
	}
}

// idle waits until nobody writes, and nothing is left to.
func idle(t *testing.T, l *link) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		l.mu.Lock()
		left := len(l.queue) > 0 || l.writing
		l.mu.Unlock()
		if !left {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("operations are left")
		}
	}
}

// A stream that is full in spite of all, as of a worker that answers what it has not
// read, is given up; the one who writes is not lost with it.
func TestStuckWriter(t *testing.T) {
	l, k := newLink(t, Config{Stall: 400 * time.Millisecond})
	k.before = func() {
		l.mu.Lock()
		l.heard = time.Now().Add(time.Hour) // it does answer
		l.mu.Unlock()
		<-k.ended
	}
	ran := make(chan error, 1)
	go func() { ran <- l.run(context.Background()) }()
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		l.ask(t, &Op{}, make(chan answer, 1))
	}()
	select {
	case err := <-ran:
		if !errors.Is(err, errStuck) {
			t.Errorf("it ended with %v", err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("nobody noticed")
	}
	select {
	case <-asked:
	case <-time.After(30 * time.Second):
		t.Fatal("the caller still writes")
	}
}

// Callers and the link's goroutine at once: each operation is sent once, and no two
// write.
func TestWritersTogether(t *testing.T) {
	l, k := newLink(t, Config{})
	k.before = runtime.Gosched
	stop := make(chan struct{})
	relieved := make(chan struct{})
	go func() { l.relieve(stop); close(relieved) }()
	const callers, each = 16, 500
	var all sync.WaitGroup
	for range callers {
		all.Go(func() {
			op := &Op{Request: signing.Request{Data: make([]byte, 200)}}
			for range each {
				l.ask(t, op, nil)
				l.mu.Lock() // now and then everything is answered
				if len(l.open) > 50 {
					clear(l.open)
				}
				l.mu.Unlock()
			}
		})
	}
	all.Wait()
	idle(t, l)
	close(stop)
	<-relieved
	if len(k.got) != callers*each {
		t.Errorf("%d of %d sent", len(k.got), callers*each)
	}
	for id, n := range k.got {
		if n != 1 {
			t.Errorf("operation %d was sent %d times", id, n)
		}
	}
}

// The second operation takes another stream, as the worker may be computing the
// first before it reads on; more go together, and so do those that come at once.
func TestStreamOfTwo(t *testing.T) {
	begun := time.Now()
	for _, tt := range []struct {
		name  string
		apart time.Duration
		want  [][2]int // open on each stream, after each operation
	}{
		{"one by one", 2 * moment, [][2]int{{1, 0}, {1, 1}, {2, 1}, {3, 1}}},
		{"at once", 0, [][2]int{{1, 0}, {2, 0}, {3, 0}, {4, 0}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := &worker{cluster: &Cluster{}, links: make([]atomic.Pointer[link], 2)}
			for i := range w.links {
				l, _ := newLink(t, Config{})
				l.w = w
				w.links[i].Store(l)
			}
			for i, want := range tt.want {
				if !w.send(&Op{}, time.Second, nil, begun.Add(time.Duration(i)*tt.apart)) {
					t.Fatal("not taken")
				}
				if got := [2]int{len(w.links[0].Load().open), len(w.links[1].Load().open)}; got != want {
					t.Errorf("after %d operations %v on the streams, want %v", i+1, got, want)
				}
			}
		})
	}
}

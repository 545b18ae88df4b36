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
// and nobody is woken for it: the link has no goroutine here.
func TestCallerWrites(t *testing.T) {
	l, k := newLink(t, Config{})
	op := &Op{Request: signing.Request{Data: make([]byte, 32)}}
	to := make(chan answer, 1)
	for i := range 20 {
		l.ask(t, op, to)
		if k.sends != i+1 || k.got[uint64(i+1)] != 1 || len(l.some) != 0 || l.writing || len(l.queue) != 0 {
			t.Fatalf("operation %d: %d messages, %d wake-ups, %d left", i, k.sends, len(l.some), len(l.queue))
		}
		if i == 10 { // what is unanswered is no reason, if it is little
			continue
		}
		l.open, l.bytes = map[uint64]attempt{}, 0
	}
	if n := testing.AllocsPerRun(100, func() {
		l.ask(t, op, to)
		clear(l.open)
		l.bytes = 0
	}); n > 2 {
		t.Errorf("%.1f allocations an operation", n)
	}
}

// When gRPC may wait for the worker to read, no caller does: the link's goroutine
// writes. And it is the caller again when the worker has answered.
func TestCallerDoesNotWait(t *testing.T) {
	l, k := newLink(t, Config{})
	op := &Op{Request: signing.Request{Data: make([]byte, signing.MaxInput)}}
	to := make(chan answer, 1)
	n := 0
	for len(l.some) == 0 {
		if n++; n > 64<<10/signing.MaxInput {
			t.Fatalf("callers wrote %d bytes that nobody has answered", n*signing.MaxInput)
		}
		l.ask(t, op, to)
	}
	if k.sends != n-1 || !l.writing || !l.since.IsZero() {
		t.Errorf("%d messages of %d operations by their callers", k.sends, n)
	}
	stop := make(chan struct{})
	relieved := make(chan struct{})
	go func() { l.relieve(stop); close(relieved) }()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		l.mu.Lock()
		done := !l.writing
		l.mu.Unlock()
		if done {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the link's goroutine does not write")
		}
	}
	close(stop)
	<-relieved
	if k.sends != n {
		t.Errorf("%d messages", k.sends)
	}
	clear(l.open)
	l.bytes = 0
	l.ask(t, op, to)
	if k.sends != n+1 {
		t.Error("the caller does not write when all is answered")
	}
}

// A stream that is full in spite of all, as of a worker that answers what it has not
// read, is given up; the one who writes is not lost with it.
func TestStuckWriter(t *testing.T) {
	l, k := newLink(t, Config{Stall: 40 * time.Millisecond})
	k.before = func() { <-k.ended }
	l.open[99], l.heard = attempt{}, time.Now().Add(time.Hour) // it does answer
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
				if l.bytes > 2*direct {
					l.bytes = 0
				}
				l.mu.Unlock()
			}
		})
	}
	all.Wait()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		l.mu.Lock()
		left := len(l.queue) > 0 || l.writing
		l.mu.Unlock()
		if !left {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("operations are left")
		}
	}
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
// first before it reads on; more go together.
func TestStreamOfTwo(t *testing.T) {
	w := &worker{cluster: &Cluster{}, links: make([]atomic.Pointer[link], 2)}
	var streams []*taker
	for i := range w.links {
		l, k := newLink(t, Config{})
		l.w = w
		w.links[i].Store(l)
		streams = append(streams, k)
	}
	for i, want := range [][2]int{{1, 0}, {1, 1}, {2, 1}, {3, 1}, {4, 1}} {
		if !w.send(&Op{}, time.Second, nil, time.Now()) {
			t.Fatal("not taken")
		}
		if got := [2]int{streams[0].sends, streams[1].sends}; got != want {
			t.Errorf("after %d operations %v on the streams, want %v", i+1, got, want)
		}
	}
	l := w.links[1].Load()
	clear(l.open) // and stay together although the second is free
	w.send(&Op{}, time.Second, nil, time.Now())
	if streams[0].sends != 5 || streams[1].sends != 1 {
		t.Errorf("%d and %d", streams[0].sends, streams[1].sends)
	}
}

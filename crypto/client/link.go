// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"time"

	"google.golang.org/grpc"

	"pno/crypto/signing"
	"pno/crypto/wire"
	cryptov1 "pno/proto/pno/crypto/v1"
)

// answer is what came of one attempt.
type answer struct {
	w      *worker
	status signing.Status
	data   []byte
	sent   time.Time
	took   time.Duration // since it was sent
	exec   time.Duration // of the computation, as the worker says
	text   string
	broken bool // the stream ended: nothing is known about the operation
}

// attempt is an operation at one worker. It stays open after its caller has
// gone: a worker that does not answer is a busy one.
type attempt struct {
	to   chan<- answer // with room for every attempt of its operation
	sent time.Time
}

// link is one stream to a worker, while it lasts.
//
// While operations come one at a time, each caller writes its own to the stream, so
// that it passes through no other goroutine; gRPC takes it without waiting for the
// worker to read, which who has a deadline must not. Everything else is left to the
// link's own goroutine, which finds more to send together: also the first one after
// a time in which there were several, for there will be others.
type link struct {
	w      *worker
	stream cryptov1.CryptoService_OperateClient
	cancel context.CancelFunc
	some   chan struct{} // the link's goroutine is to write
	broken chan error    // why somebody could not

	mu       sync.Mutex
	open     map[uint64]attempt
	queue    []*cryptov1.Operation
	writing  bool                    // somebody does
	since    time.Time               // when a caller began to; zero: it is the link's goroutine, or nobody
	spare    []*cryptov1.Operation   // of who writes
	sent     []*cryptov1.Operation   // that can be used again
	request  cryptov1.OperateRequest // likewise
	next     uint64
	inflight int       // what the worker allows
	last     time.Time // when one was queued
	together int       // operations since none was open
	before   int       // that number, the time before
	heard    time.Time
	draining bool
	dead     bool
}

// moment is well above what callers take that were all woken together, and below
// what a signature does.
const moment = 20 * time.Microsecond

// mostBlank bounds how many operations are kept to be used again.
const mostBlank = 64

var (
	errStalled  = errors.New("no answer for too long")
	errStuck    = errors.New("the worker does not read")
	errSchema   = errors.New("the worker broke the protocol")
	errDraining = errors.New("the worker drains")
)

// dial opens a stream, when there is a connection, and waits for the worker's
// description.
func dial(ctx context.Context, w *worker) (*link, error) {
	ctx, cancel := context.WithCancel(ctx)
	timer := time.AfterFunc(connectTimeout, cancel)
	defer timer.Stop()
	stream, err := cryptov1.NewCryptoServiceClient(w.conn).Operate(ctx, grpc.WaitForReady(true))
	if err != nil {
		cancel()
		return nil, err
	}
	first, err := stream.Recv()
	if err == nil && (first.Worker == nil || first.Worker.Draining || first.Worker.MaxInflight == 0) {
		err = errDraining
	}
	if err == nil && !timer.Stop() {
		err = context.DeadlineExceeded
	}
	if err != nil {
		cancel()
		return nil, err
	}
	l := &link{w: w, stream: stream, cancel: cancel, some: make(chan struct{}, 1), broken: make(chan error, 1), open: map[uint64]attempt{},
		inflight: int(min(first.Worker.MaxInflight, wire.MaxInflight)), heard: time.Now()}
	return l, nil
}

// send queues an attempt; false when the link takes none, or has most already.
func (l *link) send(op *Op, timeout time.Duration, to chan<- answer, most int, now time.Time) bool {
	l.mu.Lock()
	if l.dead || l.draining || len(l.open) >= min(l.inflight, most) {
		l.mu.Unlock()
		return false
	}
	if len(l.open) == 0 {
		l.heard = now // silence counts from here on
		l.before, l.together = l.together, 0
	}
	l.together++
	l.next++
	l.open[l.next], l.last = attempt{to, now}, now
	o := l.blank()
	o.Id, o.KeyId, o.Scheme, o.Input, o.Data = l.next, op.Key[:], uint32(op.Scheme), cryptov1.Input(op.Input), op.Data
	o.TimeoutMicros = uint32(timeout.Microseconds())
	l.queue = append(l.queue, o)
	l.w.outstanding.Add(1)
	if l.writing {
		l.mu.Unlock()
		return true // who writes takes it along
	}
	l.writing = true
	if len(l.open) > 1 || l.before > 1 {
		l.mu.Unlock()
		l.some <- struct{}{} // there is room: only one has the right to write
		return true
	}
	l.since = now
	l.mu.Unlock()
	l.write()
	return true
}

// blank is an operation to fill in. Locked.
func (l *link) blank() *cryptov1.Operation {
	last := len(l.sent) - 1
	if last < 0 {
		return new(cryptov1.Operation)
	}
	o := l.sent[last]
	l.sent = l.sent[:last]
	return o
}

// write sends what is queued, for the one that has set l.writing. A caller leaves
// what was queued meanwhile to the link's goroutine.
func (l *link) write() {
	for first := true; ; first = false {
		l.mu.Lock()
		all, caller := l.queue, !l.since.IsZero()
		if len(all) == 0 || l.dead {
			l.writing, l.since = false, time.Time{}
			l.mu.Unlock()
			return
		}
		if caller && !first {
			l.since = time.Time{}
			l.mu.Unlock()
			l.some <- struct{}{}
			return
		}
		l.queue, l.spare = l.spare[:0], nil
		l.mu.Unlock()
		if err := l.sendAll(all); err != nil {
			l.broken <- err // l.writing stays set: nobody else needs to try
			return
		}
		for _, o := range all {
			o.KeyId, o.Data = nil, nil // the caller's
		}
		l.mu.Lock()
		l.sent = append(l.sent, all[:min(len(all), mostBlank-len(l.sent))]...)
		clear(all)
		l.spare = all
		l.mu.Unlock()
	}
}

func (l *link) sendAll(ops []*cryptov1.Operation) error {
	for len(ops) > 0 {
		n := min(len(ops), wire.MaxBatch)
		l.request.Operations = ops[:n]
		if err := l.stream.Send(&l.request); err != nil {
			return fmt.Errorf("send: %w", err)
		}
		ops = ops[n:]
	}
	return nil
}

// computing tells whether the worker may be at work with the stream's only operation:
// one that was sent this moment has others after it, which go along better.
func (l *link) computing(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.open) == 1 && now.Sub(l.last) > moment
}

// run serves the stream until it breaks, and says why.
func (l *link) run(ctx context.Context) error {
	received := make(chan error, 1)
	written := make(chan struct{})
	stop := make(chan struct{})
	defer func() {
		l.cancel()
		close(stop)
		<-written
	}()
	go func() { received <- l.receive() }()
	go func() {
		defer close(written)
		l.relieve(stop)
	}()
	watch := time.NewTicker(l.w.cluster.cfg.Stall / 4)
	defer watch.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-received:
			return err
		case err := <-l.broken:
			if errors.Is(err, io.EOF) {
				return <-received // that says more
			}
			return err
		case <-watch.C:
			if err := l.check(); err != nil {
				return err
			}
		}
	}
}

// relieve writes what callers leave to it.
func (l *link) relieve(stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case <-l.some:
			runtime.Gosched() // whoever is about to queue something, may
			l.write()
		}
	}
}

// check finds a worker that hangs.
func (l *link) check() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	stall := l.w.cluster.cfg.Stall
	if len(l.open) > 0 && time.Since(l.heard) > stall {
		return errStalled
	}
	if !l.since.IsZero() && time.Since(l.since) > stall {
		return errStuck // it answers what it has not read, or a caller would not wait
	}
	return nil
}

// silent tells whether nothing was heard for that long.
func (l *link) silent(now time.Time, stall time.Duration) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return now.Sub(l.heard) > stall
}

func (l *link) receive() error {
	for {
		resp, err := l.stream.Recv()
		if err != nil {
			return err
		}
		now := time.Now()
		if resp.Worker != nil && resp.Worker.Draining {
			l.mu.Lock()
			l.draining = true
			l.mu.Unlock()
			l.w.withdraw(l)
			l.w.cluster.cfg.Log.Info("worker drains", "worker", l.w.addr)
		}
		for _, r := range resp.Results {
			l.mu.Lock()
			a, known := l.open[r.Id]
			delete(l.open, r.Id)
			l.heard = now
			l.mu.Unlock()
			if !known || r.Status <= 0 || r.Status > cryptov1.Status(signing.Internal) || len(r.Data) > signing.MaxOutput {
				if known {
					l.w.outstanding.Add(-1)
					a.to <- answer{w: l.w, broken: true, text: errSchema.Error()}
				}
				return errSchema
			}
			l.w.outstanding.Add(-1)
			a.to <- answer{w: l.w, status: signing.Status(r.Status), data: r.Data, sent: a.sent, took: now.Sub(a.sent), exec: time.Duration(r.ExecMicros) * time.Microsecond, text: r.Text}
		}
		if l.drained() {
			return errDraining
		}
	}
}

func (l *link) drained() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.draining && len(l.open) == 0
}

// fail ends every attempt that is open.
func (l *link) fail(reason error) (lost int) {
	l.cancel()
	l.mu.Lock()
	open := l.open
	l.open, l.dead, l.queue = nil, true, nil
	l.mu.Unlock()
	for _, a := range open {
		l.w.outstanding.Add(-1)
		a.to <- answer{w: l.w, broken: true, text: reason.Error()}
	}
	return len(open)
}

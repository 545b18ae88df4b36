// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"errors"
	"fmt"
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
type link struct {
	w      *worker
	stream cryptov1.CryptoService_OperateClient
	cancel context.CancelFunc
	some   chan struct{}

	mu       sync.Mutex
	open     map[uint64]attempt
	queue    []*cryptov1.Operation
	next     uint64
	inflight int // what the worker allows
	heard    time.Time
	draining bool
	dead     bool
}

var (
	errStalled  = errors.New("no answer for too long")
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
	l := &link{w: w, stream: stream, cancel: cancel, some: make(chan struct{}, 1), open: map[uint64]attempt{},
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
	}
	l.next++
	l.open[l.next] = attempt{to, now}
	l.queue = append(l.queue, &cryptov1.Operation{Id: l.next, KeyId: op.Key[:], Scheme: uint32(op.Scheme),
		Input: cryptov1.Input(op.Input), Data: op.Data, TimeoutMicros: uint32(timeout.Microseconds())})
	l.mu.Unlock()
	l.w.outstanding.Add(1)
	select {
	case l.some <- struct{}{}:
	default:
	}
	return true
}

// run moves operations and answers until the stream breaks, and says why.
func (l *link) run(ctx context.Context) error {
	defer l.cancel()
	received := make(chan error, 1)
	go func() { received <- l.receive() }()
	watch := time.NewTicker(l.w.cluster.cfg.Stall / 4)
	defer watch.Stop()
	var spare []*cryptov1.Operation
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-received:
			return err
		case <-watch.C:
			if err := l.check(); err != nil {
				return err
			}
		case <-l.some:
			runtime.Gosched() // whoever is about to queue something, may
			l.mu.Lock()
			all := l.queue
			l.queue = spare[:0]
			l.mu.Unlock()
			if err := l.write(all); err != nil {
				return err
			}
			clear(all)
			spare = all
		}
	}
}

func (l *link) write(ops []*cryptov1.Operation) error {
	for len(ops) > 0 {
		n := min(len(ops), wire.MaxBatch)
		if err := l.stream.Send(&cryptov1.OperateRequest{Operations: ops[:n]}); err != nil {
			return fmt.Errorf("send: %w", err)
		}
		ops = ops[n:]
	}
	return nil
}

// check finds a worker that hangs.
func (l *link) check() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.open) > 0 && time.Since(l.heard) > l.w.cluster.cfg.Stall {
		return errStalled
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

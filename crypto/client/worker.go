// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/keepalive"

	"pno/crypto/rawconn"
	"pno/crypto/wire"
)

const (
	connectTimeout = 3 * time.Second
	retryFirst     = 50 * time.Millisecond
	reconnectMost  = 500 * time.Millisecond // between attempts to connect: a worker that is back is not to be missed for long
	retryMost      = 2 * time.Second        // between streams that a worker refuses
)

// worker is one address of the cluster: a connection with some streams.
type worker struct {
	cluster     *Cluster
	addr        string
	conn        *grpc.ClientConn
	breaker     breaker
	outstanding atomic.Int64
	links       []atomic.Pointer[link] // nil while not connected
	told        atomic.Int64           // when it was said last that it is not reached, Unix nanoseconds
	stop        context.CancelFunc
	done        sync.WaitGroup
}

func newWorker(c *Cluster, addr string) (*worker, error) {
	conn, err := c.cfg.open(addr)
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	w := &worker{cluster: c, addr: addr, conn: conn, links: make([]atomic.Pointer[link], c.cfg.Streams), stop: stop}
	for i := range w.links {
		w.done.Add(1)
		go func() {
			defer w.done.Done()
			w.keep(ctx, i)
		}()
	}
	return w, nil
}

// open makes a connection to a worker, which connects when it is first used.
func (c *Config) open(addr string) (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient("passthrough:///"+addr,
		grpc.WithTransportCredentials(c.Identity.Client(c.WorkerIdentity)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: wire.ClientPing, Timeout: wire.ClientTimeout, PermitWithoutStream: true}),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: connectTimeout,
			Backoff: backoff.Config{BaseDelay: retryFirst, Multiplier: 1.6, Jitter: 0.2, MaxDelay: reconnectMost}}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(wire.MaxMessage)),
		grpc.WithInitialWindowSize(wire.Window),
		grpc.WithInitialConnWindowSize(wire.ConnWindow),
		grpc.WithNoProxy(),
		grpc.WithContextDialer(connect),
	)
	if err != nil {
		return nil, fmt.Errorf("worker %s: %w", addr, err)
	}
	return conn, nil
}

// connect opens a TCP connection. What is sent and not acknowledged for as long as
// a ping may take ends it, which gRPC sees to for connections of its own making.
func connect(ctx context.Context, addr string) (net.Conn, error) {
	limit := func(_, _ string, c syscall.RawConn) error {
		var errOpt error
		err := c.Control(func(fd uintptr) {
			errOpt = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(wire.ClientTimeout.Milliseconds()))
		})
		return errors.Join(err, errOpt)
	}
	c, err := (&net.Dialer{Control: limit}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return rawconn.Wrap(c)
}

// keep holds stream i open.
func (w *worker) keep(ctx context.Context, i int) {
	log := w.cluster.cfg.Log
	wait := retryFirst
	for ctx.Err() == nil {
		began := time.Now()
		l, err := dial(ctx, w)
		if err == nil {
			wait = retryFirst
			w.links[i].Store(l)
			if w.told.Swap(0) != 0 {
				log.Info("worker is reached", "worker", w.addr)
			}
			w.cluster.connected()
			w.cluster.wake()
			log.Debug("connected to worker", "worker", w.addr, "stream", i)
			err = l.run(ctx)
			w.links[i].Store(nil)
			w.cluster.lost()
			lost := l.fail(err)
			if ctx.Err() == nil && !errors.Is(err, errDraining) {
				if errors.Is(err, errStalled) {
					w.stalled()
				} else if lost > 0 {
					w.bad()
				}
				log.Warn("stream to worker broke", "worker", w.addr, "open", lost, "reason", err)
			}
			w.cluster.again()
			began = time.Now()
		} else if ctx.Err() == nil {
			w.complain(err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Until(began.Add(time.Duration(float64(wait) * (0.5 + rand.Float64()))))):
		}
		wait = min(2*wait, retryMost)
	}
}

// complain says that the worker is not reached, every minute.
func (w *worker) complain(err error) {
	level, now, last := slog.LevelDebug, time.Now().UnixNano(), w.told.Load()
	if now-last > int64(time.Minute) && w.told.CompareAndSwap(last, now) {
		level = slog.LevelWarn
	}
	w.cluster.cfg.Log.Log(context.Background(), level, "worker not reached", "worker", w.addr, "reason", err)
}

// stalled keeps a worker out that did not answer in time, and gives up its other
// streams unless they were heard of meanwhile: what one learns by waiting, the
// operations of the others need not. That goes for those that are idle, too: what
// is sent on them next would wait for nothing.
func (w *worker) stalled() {
	now, stall := time.Now(), w.cluster.cfg.Stall
	w.breaker.trip(now, stall)
	for i := range w.links {
		if l := w.links[i].Load(); l != nil && l.silent(now, stall) {
			l.cancel()
		}
	}
}

// withdraw takes a stream out that takes no more operations, but still answers:
// a worker of which there are only such is not one that is connected.
func (w *worker) withdraw(l *link) {
	for i := range w.links {
		w.links[i].CompareAndSwap(l, nil)
	}
	w.cluster.lost()
}

func (w *worker) bad() {
	if w.breaker.bad(time.Now()) {
		w.cluster.stats.breaks.Add(1)
		w.cluster.cfg.Log.Warn("worker is kept out: too many failures", "worker", w.addr)
	}
}

// up tells whether any stream takes operations.
func (w *worker) up() bool {
	for i := range w.links {
		if l := w.links[i].Load(); l != nil {
			return true
		}
	}
	return false
}

// enough is how many operations a stream has before the next one is used as
// well: what travels together is cheap, what queues behind much is late.
const enough = 64

// send gives an attempt to the first stream that is not busy, or else to any.
func (w *worker) send(op *Op, timeout time.Duration, to chan<- answer, now time.Time) bool {
	// A worker may compute what comes alone before it reads on: the second one takes
	// another stream.
	for i := range w.links {
		l := w.links[i].Load()
		if l == nil {
			continue
		}
		if l.send(op, timeout, to, 1, now) {
			w.breaker.asked(now)
			return true
		}
		if !l.computing(now) {
			break
		}
	}
	for _, most := range []int{enough, math.MaxInt} {
		for i := range w.links {
			if l := w.links[i].Load(); l != nil && l.send(op, timeout, to, most, now) {
				w.breaker.asked(now)
				return true
			}
		}
	}
	return false
}

func (w *worker) close() error {
	w.stop()
	w.done.Wait()
	return w.conn.Close()
}

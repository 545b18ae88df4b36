// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"pno/internal/attach"
	"pno/offload"
)

const (
	maxUnaccepted = 64   // connections that one shard may send ahead of Accept
	backlog       = 4096 // as many as Linux lets wait by default
)

// ListenConfig holds what Listen leaves at its defaults.
type ListenConfig struct {
	// KeepAlive and KeepAliveConfig are those of net.ListenConfig.
	KeepAlive       time.Duration
	KeepAliveConfig net.KeepAliveConfig
	// ReusePort lets several listeners share the address (SO_REUSEPORT).
	ReusePort bool
}

// Listen announces on a local address, as net.Listen does. "tcp", "tcp4" and
// "tcp6" are offloaded if the policy says so; the result is then a *Listener.
// Everything else is package net's.
func Listen(network, address string) (net.Listener, error) {
	return new(ListenConfig).Listen(context.Background(), network, address)
}

// Listen is the function Listen with these settings.
func (lc *ListenConfig) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	if !isTCP(network) {
		return lc.kernel().Listen(ctx, network, address)
	}
	addrs, err := resolve(ctx, nil, network, address)
	if err != nil {
		return nil, opError("listen", network, nil, nil, err)
	}
	at := addrs[0]
	for _, a := range addrs { // IPv4 first, like net.Listen
		if a.Addr().Is4() {
			at = a
			break
		}
	}
	c := theClient()
	s, err := c.decide(attach.RuleListen, at)
	where := net.TCPAddrFromAddrPort(at)
	if err != nil {
		return nil, opError("listen", network, nil, where, os.NewSyscallError("bind", err))
	}
	if s == nil {
		return lc.kernel().Listen(ctx, network, address)
	}
	l := &Listener{c: c, local: offload.AddrFrom(at), flags: offload.BindReuseAddr,
		options: defaults(lc.KeepAlive, lc.KeepAliveConfig), done: make(chan struct{})}
	l.expire.init()
	if lc.ReusePort {
		l.flags |= offload.BindReusePort
	}
	if network == "tcp6" || at.Addr().Is6() && !at.Addr().IsUnspecified() {
		l.flags |= offload.BindV6Only
	}
	if err := l.open(ctx, s); err != nil {
		return nil, opError("listen", network, nil, where, err)
	}
	c.count(statSocketsOffloaded)
	c.count(statSocketsListening)
	return l, nil
}

func (lc *ListenConfig) kernel() *net.ListenConfig {
	k := &net.ListenConfig{KeepAlive: lc.KeepAlive, KeepAliveConfig: lc.KeepAliveConfig}
	if lc.ReusePort {
		k.Control = func(_, _ string, raw syscall.RawConn) error {
			const reusePort = 15 // SO_REUSEPORT, which package syscall has not
			var serr error
			err := raw.Control(func(fd uintptr) {
				serr = os.NewSyscallError("setsockopt", syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, reusePort, 1))
			})
			if err != nil {
				return err
			}
			return serr
		}
	}
	return k
}

// Listener is an offloaded listener. It is on every shard of the DPU; the
// connections of all come to one queue.
type Listener struct {
	c       *client
	flags   uint32
	options []option // for the connections to come
	done    chan struct{}
	expire  expiry

	mu     sync.Mutex // guards what follows
	local  offload.Addr
	ses    *session
	parts  []*binding
	queue  chan *Conn
	closed bool
}

var _ net.Listener = (*Listener)(nil)

// binding is a listener's part on one shard.
type binding struct {
	entry   entry
	l       *Listener
	lane    *lane
	waiting atomic.Int32 // connections in the queue
}

// open binds and listens on every shard of a session, or on none.
func (l *Listener) open(ctx context.Context, s *session) error {
	var parts []*binding
	err := l.listenAll(ctx, s, &parts)
	if err != nil {
		closeParts(s, parts)
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		closeParts(s, parts)
		return nil
	}
	l.ses, l.parts = s, parts
	l.queue = make(chan *Conn, maxUnaccepted*len(parts))
	for _, b := range parts {
		b.lane.setOptions(b.entry.handle, l.options)
		b.lane.control(offload.OpSubscribe, 0, b.entry.handle, 0, maxUnaccepted, nil)
	}
	return nil
}

// listenAll appends what it has made to parts.
func (l *Listener) listenAll(ctx context.Context, s *session, parts *[]*binding) error {
	req := offload.BindReq{Local: l.local, Proto: offload.ProtoTCP, Flags: l.flags}
	var payload [offload.BindReqSize]byte
	for _, lane := range s.lanes {
		b := &binding{l: l, lane: lane}
		b.entry.lis = b
		if !lane.own.add(&b.entry) {
			return syscall.ENOBUFS
		}
		req.Put(payload[:])
		answer, err := s.ask(ctx, lane, offload.OpBind, b.entry.handle, 0, payload[:])
		if err != nil {
			lane.own.drop(&b.entry)
			return os.NewSyscallError("bind", err)
		}
		*parts = append(*parts, b)
		if lane.shard == 0 { // it decides on the port
			bound, err := offload.GetAddr(answer)
			if err != nil {
				return fmt.Errorf("bind: %w", err)
			}
			l.mu.Lock()
			l.local.Port = bound.Port
			l.mu.Unlock()
			req.Local.Port = bound.Port
		}
	}
	for _, b := range *parts {
		if _, err := s.ask(ctx, b.lane, offload.OpListen, b.entry.handle, backlog, nil); err != nil {
			return os.NewSyscallError("listen", err)
		}
	}
	return nil
}

func closeParts(s *session, parts []*binding) {
	for _, b := range parts {
		b.lane.own.drop(&b.entry)
		if !s.lost.Load() {
			b.lane.control(offload.OpClose, 0, b.entry.handle, 0, 0, nil)
		}
	}
}

// park takes in a connection that the DPU has sent. The lane's rx is locked.
func (b *binding) park(c *Conn) error {
	l := b.l
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || l.ses != c.l.s {
		c.l.s.counters.inc(statRecordsStale)
		return nil
	}
	if b.waiting.Add(1) > maxUnaccepted {
		return errUninvited
	}
	if !c.l.dpu.enter(&c.entry) {
		return errBadHandle
	}
	c.from = b
	l.queue <- c // there is room for as many as may wait
	return nil
}

// Accept waits for the next connection, a *Conn.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		l.mu.Lock()
		queue := l.queue
		l.mu.Unlock()
		expired := l.expire.wait()
		select {
		case <-l.done:
			return nil, l.fail("accept", net.ErrClosed)
		case <-expired:
			return nil, l.fail("accept", os.ErrDeadlineExceeded)
		default:
		}
		select {
		case c := <-queue:
			if c != nil && c.accept() { // nil: lost, and open again
				return c, nil
			}
		case <-l.done:
		case <-expired:
		}
	}
}

// accept tells the DPU that the program has the connection now; false: it was
// lost with its session.
func (c *Conn) accept() bool {
	s := c.l.s
	c.mu.Lock()
	c.from.waiting.Add(-1)
	c.from = nil
	c.mu.Unlock()
	if s.lost.Load() {
		return false
	}
	c.l.control(offload.OpAccepted, 0, c.entry.handle, 0, 0, nil)
	s.counters.inc(statSocketsOffloaded)
	s.counters.inc(statSocketsAccepted)
	return true
}

func (l *Listener) fail(op string, err error) error { return opError(op, "tcp", nil, l.Addr(), err) }

// Close stops listening. Connections that were not accepted are reset.
func (l *Listener) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return l.fail("close", net.ErrClosed)
	}
	l.closed = true
	l.empty()
	closeParts(l.ses, l.parts)
	l.parts = nil
	l.mu.Unlock()
	close(l.done)
	l.expire.stop()
	l.c.count(statSocketsClosed)
	return nil
}

// empty forgets the connections that nobody has accepted. Locked.
func (l *Listener) empty() {
	for {
		select {
		case c := <-l.queue:
			c.l.dpu.drop(&c.entry)
			c.mu.Lock()
			c.closed = true
			for c.head != nil {
				c.dropHead()
			}
			c.mu.Unlock()
		default:
			return
		}
	}
}

// Addr is the address at the DPU, a *net.TCPAddr.
func (l *Listener) Addr() net.Addr {
	l.mu.Lock()
	defer l.mu.Unlock()
	return tcpAddr(l.local)
}

// SetDeadline bounds Accept, also those that wait already.
func (l *Listener) SetDeadline(t time.Time) error {
	if l.isClosed() {
		return l.fail("set", net.ErrClosed)
	}
	l.expire.set(t)
	return nil
}

func (l *Listener) isClosed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closed
}

// failed is told that the DPU has given the listener up, which it does not
// without need: it is opened again like one that was lost. The lane's rx is
// locked.
func (l *Listener) failed(err error) {
	slog.Error("pno: the DPU has given up a listener", "reason", err)
	go l.c.lose([]*Listener{l})
}

// revive opens the listener in another session; false: to be tried again.
func (l *Listener) revive(s *session) bool {
	if l.isClosed() {
		return true
	}
	l.mu.Lock()
	former := l.queue
	l.empty()
	closeParts(l.ses, l.parts)
	l.parts = nil
	l.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), replyTimeout)
	defer cancel()
	if err := l.open(ctx, s); err != nil {
		return false
	}
	close(former) // who waits there shall wait here
	slog.Info("pno: a listener is back on the DPU", "address", l.Addr())
	return true
}

// expiry is a deadline that a select can wait for.
type expiry struct {
	mu    sync.Mutex
	timer *time.Timer
	ch    chan struct{} // closed when passed
}

func (e *expiry) init() { e.ch = make(chan struct{}) }

func (e *expiry) wait() <-chan struct{} {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.ch
}

func (e *expiry) stop() { e.set(time.Time{}) }

func (e *expiry) set(t time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.timer != nil && !e.timer.Stop() {
		<-e.ch // the timer's function is about to close it
	}
	e.timer = nil
	if isDone(e.ch) {
		e.ch = make(chan struct{})
	}
	if t.IsZero() {
		return
	}
	ch := e.ch
	if d := time.Until(t); d > 0 {
		e.timer = time.AfterFunc(d, func() { close(ch) })
	} else {
		close(ch)
	}
}

func isDone(ch chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

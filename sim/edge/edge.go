// SPDX-License-Identifier: Apache-2.0

package edge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"pno/sim/wire"
)

const (
	// connectTimeout ends a connection attempt that nobody answers.
	connectTimeout = 30 * time.Second
	// maxConnecting bounds the forwarded connections that wait for their
	// loopback service; beyond it SYNs are dropped and come again.
	maxConnecting = 4096
)

// Config describes an edge.
type Config struct {
	Wire *wire.Device // the edge's end, used through its first queue
	// Prefixes are the edge's own addresses, each with the length of the
	// network that it shares with the DPU.
	Prefixes []netip.Prefix
	Publish  []Mapping // Outside is on this machine, Inside behind the DPU's wire
	Forward  []Mapping // Outside is on this machine, Inside an address the edge takes
	Log      *slog.Logger
}

// Mapping joins an address of this machine with one on the wire.
type Mapping struct {
	Outside, Inside netip.AddrPort
}

// Stats counts since Start. Up is from this machine to the wire.
type Stats struct {
	Published, Forwarded uint64 // connections carried
	Failed               uint64 // connections that the far side did not take
	Active               int64
	BytesUp, BytesDown   uint64
}

// Edge is a running far end.
type Edge struct {
	log   *slog.Logger
	port  *port
	stack *stack.Stack

	listeners []*net.TCPListener
	forwards  map[netip.AddrPort]netip.AddrPort // by inside, read-only after Start

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	splices map[*splice]struct{}

	published, forwarded, failed atomic.Uint64
	active                       atomic.Int64
	bytesUp, bytesDown           atomic.Uint64
}

// Start brings the far end up: its listeners accept when it returns.
func Start(cfg Config) (*Edge, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	p, err := newPort(cfg.Wire)
	if err != nil {
		return nil, fmt.Errorf("start edge: %w", err)
	}
	s, err := newStack(p, cfg.Prefixes)
	if err != nil {
		p.stop()
		return nil, fmt.Errorf("start edge: %w", err)
	}
	e := &Edge{
		log: cfg.Log, port: p, stack: s,
		forwards: make(map[netip.AddrPort]netip.AddrPort),
		splices:  make(map[*splice]struct{}),
	}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	err = errors.Join(e.forward(cfg), e.listen(cfg), p.start())
	if err != nil {
		e.Close()
		return nil, fmt.Errorf("start edge: %w", err)
	}
	for i, l := range e.listeners {
		inside := cfg.Publish[i].Inside
		e.wg.Go(func() { e.accept(l, inside) })
	}
	return e, nil
}

func (e *Edge) listen(cfg Config) error {
	for _, m := range cfg.Publish {
		l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(m.Outside))
		if err != nil {
			return fmt.Errorf("publish %v as %v: %w", m.Inside, m.Outside, err)
		}
		e.listeners = append(e.listeners, l)
	}
	return nil
}

// forward takes the inside addresses over and hands their connections to
// serve. SYNs for any other port of the edge are answered by RST.
func (e *Edge) forward(cfg Config) error {
	for _, m := range cfg.Forward {
		if _, dup := e.forwards[m.Inside]; dup {
			return fmt.Errorf("forward %v: given twice", m.Inside)
		}
		e.forwards[m.Inside] = m.Outside
		prefix := netip.PrefixFrom(m.Inside.Addr(), m.Inside.Addr().BitLen())
		if err := addAddress(e.stack, prefix); err != nil {
			return fmt.Errorf("forward %v: %w", m.Inside, err)
		}
	}
	f := tcp.NewForwarder(e.stack, 0, maxConnecting, e.serve)
	e.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, f.HandlePacket)
	return nil
}

// Published returns the addresses that the publish listeners have, in the
// order of Config.Publish; a port given as 0 is the one that was chosen.
func (e *Edge) Published() []netip.AddrPort {
	out := make([]netip.AddrPort, len(e.listeners))
	for i, l := range e.listeners {
		out[i] = l.Addr().(*net.TCPAddr).AddrPort()
	}
	return out
}

// Stats returns the counters.
func (e *Edge) Stats() Stats {
	return Stats{
		Published: e.published.Load(), Forwarded: e.forwarded.Load(),
		Failed: e.failed.Load(), Active: e.active.Load(),
		BytesUp: e.bytesUp.Load(), BytesDown: e.bytesDown.Load(),
	}
}

// Close resets every connection and waits until nothing runs any more. The
// wire stays open.
func (e *Edge) Close() {
	e.cancel()
	for _, l := range e.listeners {
		_ = l.Close()
	}
	e.mu.Lock()
	e.closed = true
	open := make([]*splice, 0, len(e.splices))
	for s := range e.splices {
		open = append(open, s)
	}
	e.mu.Unlock()
	for _, s := range open {
		s.reset()
	}
	e.wg.Wait()
	e.port.stop()
	e.stack.Destroy()
}

// accept carries the connections of one publish listener.
func (e *Edge) accept(l *net.TCPListener, inside netip.AddrPort) {
	for {
		c, err := l.AcceptTCP()
		if err != nil {
			if e.ctx.Err() != nil {
				return
			}
			// Out of descriptors, most likely: the clients wait in the backlog.
			e.log.Warn("accept failed", "listener", l.Addr(), "err", err)
			select {
			case <-time.After(100 * time.Millisecond):
			case <-e.ctx.Done():
			}
			continue
		}
		e.wg.Go(func() { e.connect(c, inside) })
	}
}

// connect dials behind the wire for a client that is already there.
func (e *Edge) connect(c *net.TCPConn, inside netip.AddrPort) {
	ep, wq, err := e.dial(inside)
	if err != nil {
		e.failed.Add(1)
		e.log.Debug("connection failed", "to", inside, "err", err)
		resetKernel(c)
		return
	}
	e.carry(c, ep, wq, &e.published)
}

func (e *Edge) dial(to netip.AddrPort) (tcpip.Endpoint, *waiter.Queue, error) {
	var wq waiter.Queue
	ep, terr := e.stack.NewEndpoint(tcp.ProtocolNumber, protocolOf(to.Addr()), &wq)
	if terr != nil {
		return nil, nil, fmt.Errorf("create endpoint: %s", terr)
	}
	entry, ready := waiter.NewChannelEntry(waiter.WritableEvents | brokenEvents)
	wq.EventRegister(&entry)
	defer wq.EventUnregister(&entry)
	addr := tcpip.FullAddress{NIC: nicID, Addr: tcpip.AddrFromSlice(to.Addr().AsSlice()), Port: to.Port()}
	terr = ep.Connect(addr)
	if _, started := terr.(*tcpip.ErrConnectStarted); started {
		timeout := time.NewTimer(connectTimeout)
		defer timeout.Stop()
		select {
		case <-ready:
			terr = ep.LastError()
		case <-timeout.C:
			terr = &tcpip.ErrTimeout{}
		case <-e.ctx.Done():
			terr = &tcpip.ErrAborted{}
		}
	}
	if terr != nil {
		ep.Abort()
		return nil, nil, fmt.Errorf("connect to %v: %s", to, terr)
	}
	ep.SocketOptions().SetDelayOption(false) // the client has decided already
	return ep, &wq, nil
}

// serve answers a SYN from behind the wire for an address of the edge: the
// handshake completes only once the loopback service has taken its half.
func (e *Edge) serve(r *tcp.ForwarderRequest) {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		r.Complete(true)
		return
	}
	e.wg.Add(1)
	e.mu.Unlock()
	defer e.wg.Done()
	id := r.ID()
	local, _ := netip.AddrFromSlice(id.LocalAddress.AsSlice())
	inside := netip.AddrPortFrom(local, id.LocalPort)
	outside, known := e.forwards[inside]
	if !known {
		r.Complete(true)
		return
	}
	dialer := net.Dialer{Timeout: connectTimeout}
	c, err := dialer.DialContext(e.ctx, "tcp", outside.String())
	if err != nil {
		e.failed.Add(1)
		e.log.Debug("forward failed", "to", outside, "err", err)
		r.Complete(true)
		return
	}
	var wq waiter.Queue
	ep, terr := r.CreateEndpoint(&wq)
	r.Complete(false)
	if terr != nil {
		e.failed.Add(1)
		resetKernel(c.(*net.TCPConn))
		return
	}
	ep.SocketOptions().SetDelayOption(false)
	e.carry(c.(*net.TCPConn), ep, &wq, &e.forwarded)
}

// carry runs a splice to its end, unless the edge is closing.
func (e *Edge) carry(c *net.TCPConn, ep tcpip.Endpoint, wq *waiter.Queue, count *atomic.Uint64) {
	s, err := newSplice(c, ep, wq)
	if err != nil {
		ep.Abort()
		resetKernel(c)
		return
	}
	s.bytesUp, s.bytesDown = &e.bytesUp, &e.bytesDown
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		s.reset()
		return
	}
	e.splices[s] = struct{}{}
	e.mu.Unlock()
	count.Add(1)
	e.active.Add(1)
	s.run()
	e.active.Add(-1)
	e.mu.Lock()
	delete(e.splices, s)
	e.mu.Unlock()
}

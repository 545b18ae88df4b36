// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"

	"pno/internal/attach"
	"pno/offload"
)

// Dialer makes connections. The zero value is ready for use; the fields mean
// what they mean in net.Dialer. It has no Control function: an offloaded socket
// has no descriptor.
type Dialer struct {
	Timeout         time.Duration
	Deadline        time.Time
	LocalAddr       net.Addr
	FallbackDelay   time.Duration
	KeepAlive       time.Duration
	KeepAliveConfig net.KeepAliveConfig
	Resolver        *net.Resolver
}

// Dial is Dialer.Dial with default settings.
func Dial(network, address string) (net.Conn, error) { return new(Dialer).Dial(network, address) }

// Dial is DialContext without a context.
func (d *Dialer) Dial(network, address string) (net.Conn, error) {
	return d.DialContext(context.Background(), network, address)
}

// DialContext connects to an address, as net.Dialer's does. "tcp", "tcp4" and
// "tcp6" are offloaded if the policy says so; the result is then a *Conn. The
// rest is package net's. Names are resolved by package net, in the kernel.
func (d *Dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	if !isTCP(network) {
		if strings.HasPrefix(network, "udp") {
			theClient().count(statSocketsKernelUdp)
		}
		return d.kernel().DialContext(ctx, network, address)
	}
	ctx, cancel := d.limit(ctx)
	defer cancel()
	addrs, err := resolve(ctx, d.Resolver, network, address)
	if err != nil {
		return nil, opError("dial", network, nil, nil, err)
	}
	if _, ok := d.LocalAddr.(*net.TCPAddr); d.LocalAddr != nil && !ok {
		return nil, opError("dial", network, d.LocalAddr, nil, &net.AddrError{Err: "mismatched local address type", Addr: d.LocalAddr.String()})
	}
	first, others := split(network, addrs)
	if d.FallbackDelay < 0 {
		first, others = addrs, nil
	}
	return d.race(ctx, network, first, others)
}

func (d *Dialer) limit(ctx context.Context) (context.Context, context.CancelFunc) {
	until := d.Deadline
	if d.Timeout > 0 {
		if t := time.Now().Add(d.Timeout); until.IsZero() || t.Before(until) {
			until = t
		}
	}
	if until.IsZero() {
		return ctx, func() {}
	}
	return context.WithDeadline(ctx, until)
}

func (d *Dialer) kernel() *net.Dialer {
	return &net.Dialer{Timeout: d.Timeout, Deadline: d.Deadline, LocalAddr: d.LocalAddr, FallbackDelay: d.FallbackDelay,
		KeepAlive: d.KeepAlive, KeepAliveConfig: d.KeepAliveConfig, Resolver: d.Resolver}
}

// split separates the addresses of the first one's family from the others.
func split(network string, addrs []netip.AddrPort) (first, others []netip.AddrPort) {
	if network != "tcp" {
		return addrs, nil
	}
	for _, a := range addrs {
		if a.Addr().Is4() == addrs[0].Addr().Is4() {
			first = append(first, a)
		} else {
			others = append(others, a)
		}
	}
	return first, others
}

type dialResult struct {
	conn net.Conn
	err  error
}

// race dials one family, and the other too if that takes long (RFC 8305).
func (d *Dialer) race(ctx context.Context, network string, first, others []netip.AddrPort) (net.Conn, error) {
	if len(others) == 0 {
		return d.series(ctx, network, first)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	results := make(chan dialResult)
	try := func(addrs []netip.AddrPort) {
		conn, err := d.series(ctx, network, addrs)
		select {
		case results <- dialResult{conn, err}:
		case <-ctx.Done(): // the other one won
			if conn != nil {
				_ = conn.Close()
			}
		}
	}
	go try(first)
	delay := d.FallbackDelay
	if delay == 0 {
		delay = 300 * time.Millisecond
	}
	timer := time.NewTimer(delay)
	defer timer.Stop()
	var firstErr error
	for running, started := 1, false; ; {
		select {
		case <-timer.C:
			running, started = running+1, true
			go try(others)
		case r := <-results:
			if r.err == nil {
				return r.conn, nil
			}
			if firstErr == nil {
				firstErr = r.err
			}
			if running--; running == 0 && started {
				return nil, firstErr
			}
			if !started && timer.Stop() {
				running, started = running+1, true
				go try(others)
			}
		case <-ctx.Done():
			return nil, opError("dial", network, nil, net.TCPAddrFromAddrPort(first[0]), ctx.Err())
		}
	}
}

// series tries addresses in turn, each with its share of the time.
func (d *Dialer) series(ctx context.Context, network string, addrs []netip.AddrPort) (net.Conn, error) {
	var first error
	for i, a := range addrs {
		conn, err := d.one(ctx, network, a, len(addrs)-i)
		if err == nil {
			return conn, nil
		}
		if first == nil {
			first = err
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, first
}

const fairShare = 2 * time.Second // that an address gets at least, if there is as much

func (d *Dialer) one(ctx context.Context, network string, to netip.AddrPort, left int) (net.Conn, error) {
	if end, ok := ctx.Deadline(); ok && left > 1 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, max(time.Until(end)/time.Duration(left), fairShare))
		defer cancel()
	}
	if ip := to.Addr(); ip.IsUnspecified() { // this machine, says package net
		to = netip.AddrPortFrom(netip.IPv6Loopback(), to.Port())
		if ip.Is4() || network != "tcp6" {
			to = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), to.Port())
		}
	}
	s, err := theClient().decide(attach.RuleConnect, to)
	peer := net.TCPAddrFromAddrPort(to)
	if err != nil {
		return nil, opError("dial", network, d.LocalAddr, peer, err)
	}
	if s == nil {
		return d.kernel().DialContext(ctx, network, to.String())
	}
	req := offload.ConnectReq{Peer: offload.AddrFrom(to), Proto: offload.ProtoTCP}
	if local, ok := d.LocalAddr.(*net.TCPAddr); ok && local != nil {
		req.Local = localAddr(local, to)
	}
	c, err := s.connect(ctx, req, defaults(d.KeepAlive, d.KeepAliveConfig))
	if err != nil {
		return nil, opError("dial", network, d.LocalAddr, peer, err)
	}
	return c, nil
}

// localAddr is where a connection starts from: an address without port lets
// the DPU choose that, and the reverse.
func localAddr(local *net.TCPAddr, to netip.AddrPort) offload.Addr {
	ap := local.AddrPort()
	if !ap.Addr().IsValid() {
		ip := netip.IPv6Unspecified()
		if to.Addr().Is4() {
			ip = netip.IPv4Unspecified()
		}
		ap = netip.AddrPortFrom(ip, ap.Port())
	}
	return offload.AddrFrom(ap)
}

// redirect is the DPU's answer that the flow belongs to another shard.
type redirect struct{ shard int }

func (r *redirect) Error() string { return fmt.Sprintf("the flow belongs to shard %d", r.shard) }

// connect makes a connection, on the next shard in turn or on the one to which
// its packets will come.
func (s *session) connect(ctx context.Context, req offload.ConnectReq, options []option) (*Conn, error) {
	s.counters.inc(statSocketsOffloaded)
	shard := int(s.turn.Add(1) % uint32(len(s.lanes)))
	for range len(s.lanes) + 1 {
		c, err := s.lanes[shard].connect(ctx, req, options)
		var r *redirect
		if errors.As(err, &r) && r.shard < len(s.lanes) {
			shard = r.shard
			continue
		}
		if err == nil {
			s.counters.inc(statSocketsConnected)
			return c, nil
		}
		s.counters.inc(statSocketsClosed)
		return nil, err
	}
	s.counters.inc(statSocketsClosed)
	return nil, os.NewSyscallError("connect", syscall.EADDRNOTAVAIL)
}

func (l *lane) connect(ctx context.Context, req offload.ConnectReq, options []option) (*Conn, error) {
	c := newConn(l, stateConnecting)
	c.dialled = make(chan error, 1)
	c.setAddrs(offload.AddrPair{Local: req.Local, Peer: req.Peer})
	if !l.own.add(&c.entry) {
		return nil, syscall.ENOBUFS
	}
	var payload [offload.ConnectReqSize]byte
	req.Put(payload[:])
	l.control(offload.OpConnect, 0, c.entry.handle, 0, 0, payload[:])
	l.setOptions(c.entry.handle, options)
	var err error
	select {
	case err = <-c.dialled:
	case <-ctx.Done():
		err = ctx.Err()
	case <-l.s.done:
		err = syscall.ENETDOWN
	}
	if err != nil {
		c.abandon(err)
		return nil, err
	}
	return c, nil
}

// answer ends the wait of connect. mu is locked.
func (c *Conn) answer(err error) {
	select {
	case c.dialled <- err:
	default: // it has one already
	}
}

// abandon forgets a connection that was not made.
func (c *Conn) abandon(why error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for c.head != nil { // it may have come about a moment too late
		c.dropHead()
	}
	var r *redirect
	if errors.As(why, &r) {
		c.l.own.drop(&c.entry) // the DPU has forgotten it
		return
	}
	c.release(0)
}

// connected takes in the answer to Connect.
func (c *Conn) connected(payload []byte) error {
	pair, err := offload.GetAddrPair(payload)
	if err != nil {
		return errShortRecord
	}
	if c.state == stateConnecting {
		c.setAddrs(pair)
		c.state = stateOpen
		c.answer(nil)
	}
	return nil
}

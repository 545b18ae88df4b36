// SPDX-License-Identifier: Apache-2.0

package edge

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"pno/sim/wire"
)

const patience = 10 * time.Second

var (
	inside4 = netip.MustParseAddrPort("198.18.0.2:80")
	inside6 = netip.MustParseAddrPort("[2001:2::2]:80")
)

// world is an edge, and in the DPU's place a second stack on the wire.
type world struct {
	edge *Edge
	far  *stack.Stack
}

func prefixes(ss ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range ss {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func newWorld(t testing.TB, wcfg wire.Config, cfg Config) *world {
	t.Helper()
	a, b, err := wire.Pair(wcfg)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Wire = a
	cfg.Prefixes = prefixes("198.18.0.1/15", "2001:2::1/48")
	e, err := Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	p, err := newPort(b)
	if err != nil {
		t.Fatal(err)
	}
	far, err := newStack(p, prefixes("198.18.0.2/15", "2001:2::2/48"))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		e.Close()
		p.stop()
		far.Destroy()
		_ = a.Close()
		_ = b.Close()
	})
	return &world{edge: e, far: far}
}

func publish(inside netip.AddrPort) Config {
	return Config{Publish: []Mapping{{Outside: netip.MustParseAddrPort("127.0.0.1:0"), Inside: inside}}}
}

func full(a netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: nicID, Addr: tcpip.AddrFromSlice(a.Addr().AsSlice()), Port: a.Port()}
}

// listen serves each connection behind the wire by fn.
func (w *world) listen(t testing.TB, at netip.AddrPort, fn func(c *gonet.TCPConn)) {
	t.Helper()
	l, err := gonet.ListenTCP(w.far, full(at), protocolOf(at.Addr()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go fn(c.(*gonet.TCPConn))
		}
	}()
}

func (w *world) dial(t testing.TB) *net.TCPConn {
	t.Helper()
	c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(w.edge.Published()[0]))
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func random(n int, seed uint64) []byte {
	b := make([]byte, n)
	src := rand.NewChaCha8([32]byte{byte(seed)})
	_, _ = src.Read(b)
	return b
}

func TestPublishCarriesBothWays(t *testing.T) {
	for _, c := range []struct {
		name   string
		at     netip.AddrPort
		faults wire.Faults
		size   int
	}{
		{"IPv4", inside4, wire.Faults{}, 4 << 20},
		{"IPv6", inside6, wire.Faults{}, 4 << 20},
		{"lossy", inside4, wire.Faults{Loss: 0.01, Reorder: 0.01, Duplicate: 0.01, Delay: time.Millisecond}, 1 << 20},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, wire.Config{Seed: 1, Faults: [2]wire.Faults{c.faults, c.faults}}, publish(c.at))
			// The far side reads the request to its end, then answers: the
			// half-close must cross before the answer comes.
			answer := random(c.size, 2)
			got := make(chan [32]byte, 1)
			w.listen(t, c.at, func(f *gonet.TCPConn) {
				h := sha256.New()
				_, _ = io.Copy(h, f)
				got <- [32]byte(h.Sum(nil))
				_, _ = f.Write(answer)
				_ = f.Close()
			})
			conn := w.dial(t)
			request := random(c.size, 1)
			if _, err := conn.Write(request); err != nil {
				t.Fatal(err)
			}
			if err := conn.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			back, err := io.ReadAll(conn)
			if err != nil {
				t.Fatal(err)
			}
			if <-got != sha256.Sum256(request) {
				t.Error("request damaged")
			}
			if !bytes.Equal(back, answer) {
				t.Errorf("answer damaged, %d of %d bytes", len(back), len(answer))
			}
			w.idle(t)
			s := w.edge.Stats()
			if s.Published != 1 || s.BytesUp != uint64(c.size) || s.BytesDown != uint64(c.size) {
				t.Errorf("stats %+v", s)
			}
		})
	}
}

// idle waits until the edge carries nothing.
func (w *world) idle(t *testing.T) {
	t.Helper()
	for end := time.Now().Add(patience); w.edge.Stats().Active > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("a connection stays")
		}
	}
}

func TestFarSideClosesFirst(t *testing.T) {
	w := newWorld(t, wire.Config{}, publish(inside4))
	got := make(chan string, 1)
	w.listen(t, inside4, func(f *gonet.TCPConn) {
		_, _ = f.Write([]byte("bye"))
		_ = f.CloseWrite()
		b, _ := io.ReadAll(f)
		got <- string(b)
		_ = f.Close()
	})
	c := w.dial(t)
	if b, err := io.ReadAll(c); string(b) != "bye" || err != nil {
		t.Fatalf("read %q, %v", b, err)
	}
	if _, err := c.Write([]byte("after your FIN")); err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	if b := <-got; b != "after your FIN" {
		t.Errorf("far side read %q", b)
	}
	w.idle(t)
}

func TestResetFromTheFarSide(t *testing.T) {
	for _, c := range []struct {
		name  string
		first func(c *net.TCPConn, f tcpip.Endpoint)
	}{
		{"established", func(*net.TCPConn, tcpip.Endpoint) {}},
		{"after the client's FIN", func(c *net.TCPConn, _ tcpip.Endpoint) { _ = c.CloseWrite() }},
		{"after its own FIN", func(_ *net.TCPConn, f tcpip.Endpoint) { _ = f.Shutdown(tcpip.ShutdownWrite) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, wire.Config{}, publish(inside4))
			eps := w.endpoints(t, inside4)
			conn := w.dial(t)
			ep := <-eps
			c.first(conn, ep)
			time.Sleep(20 * time.Millisecond)
			ep.Abort()
			w.idle(t)
			if !wasReset(conn) {
				t.Error("the client saw no reset")
			}
		})
	}
}

// wasReset tells whether a connection ended by RST rather than by FIN.
func wasReset(c *net.TCPConn) bool {
	b := make([]byte, 1)
	_, err := c.Read(b)
	if errors.Is(err, io.EOF) {
		// After an orderly end a write still works once; after RST it does not.
		_, err = c.Write(b)
	}
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// endpoints accepts on the far side and hands out the bare endpoints.
func (w *world) endpoints(t *testing.T, at netip.AddrPort) <-chan tcpip.Endpoint {
	t.Helper()
	var wq waiter.Queue
	l, terr := w.far.NewEndpoint(tcp.ProtocolNumber, protocolOf(at.Addr()), &wq)
	if terr != nil {
		t.Fatal(terr)
	}
	if terr := l.Bind(full(at)); terr != nil {
		t.Fatal(terr)
	}
	if terr := l.Listen(16); terr != nil {
		t.Fatal(terr)
	}
	t.Cleanup(l.Close)
	out := make(chan tcpip.Endpoint, 16)
	entry, ready := waiter.NewChannelEntry(waiter.ReadableEvents)
	wq.EventRegister(&entry)
	go func() {
		for range ready {
			for {
				ep, _, terr := l.Accept(nil)
				if terr != nil {
					break
				}
				out <- ep
			}
		}
	}()
	return out
}

func TestResetFromTheClient(t *testing.T) {
	for _, c := range []struct {
		name  string
		first func(c *net.TCPConn, f tcpip.Endpoint)
	}{
		{"established", func(*net.TCPConn, tcpip.Endpoint) {}},
		{"after the far side's FIN", func(_ *net.TCPConn, f tcpip.Endpoint) { _ = f.Shutdown(tcpip.ShutdownWrite) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, wire.Config{}, publish(inside4))
			eps := w.endpoints(t, inside4)
			conn := w.dial(t)
			ep := <-eps
			c.first(conn, ep)
			time.Sleep(20 * time.Millisecond)
			_ = conn.SetLinger(0)
			_ = conn.Close()
			w.idle(t)
			var buf bytes.Buffer
			for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
				_, err := ep.Read(&buf, tcpip.ReadOptions{})
				if _, reset := err.(*tcpip.ErrConnectionReset); reset {
					return
				}
				if _, wait := err.(*tcpip.ErrWouldBlock); !wait || time.Now().After(end) {
					t.Fatalf("far side sees %v, want a reset", err)
				}
			}
		})
	}
}

func TestRefused(t *testing.T) {
	w := newWorld(t, wire.Config{}, publish(inside4))
	c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(w.edge.Published()[0]))
	if err == nil {
		defer func() { _ = c.Close() }()
		_ = c.SetDeadline(time.Now().Add(patience))
		if !wasReset(c) {
			t.Error("nobody listens, but the client saw no reset")
		}
	} else if !errors.Is(err, syscall.ECONNRESET) { // it may come as early as that
		t.Fatal(err)
	}
	if s := w.edge.Stats(); s.Failed != 1 {
		t.Errorf("stats %+v, want one failure", s)
	}
}

func TestForward(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			}()
		}
	}()
	open := Mapping{Outside: l.Addr().(*net.TCPAddr).AddrPort(), Inside: netip.MustParseAddrPort("198.18.0.100:9000")}
	open6 := Mapping{Outside: open.Outside, Inside: netip.MustParseAddrPort("[2001:2::100]:9000")}
	shut := Mapping{Outside: closedPort(t), Inside: netip.MustParseAddrPort("198.18.0.100:9001")}
	w := newWorld(t, wire.Config{}, Config{Forward: []Mapping{open, open6, shut}})

	for _, m := range []Mapping{open, open6} {
		c, err := gonet.DialContextTCP(context.Background(), w.far, full(m.Inside), protocolOf(m.Inside.Addr()))
		if err != nil {
			t.Fatal(err)
		}
		want := random(1<<20, 3)
		go func() {
			_, _ = c.Write(want)
			_ = c.CloseWrite()
		}()
		_ = c.SetReadDeadline(time.Now().Add(patience))
		if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%v echoed %d of %d bytes, %v", m.Inside, len(got), len(want), err)
		}
		_ = c.Close()
	}
	for _, refused := range []netip.AddrPort{shut.Inside, netip.MustParseAddrPort("198.18.0.100:9002")} {
		start := time.Now()
		_, err := gonet.DialContextTCP(context.Background(), w.far, full(refused), protocolOf(refused.Addr()))
		if err == nil || time.Since(start) > 10*time.Second {
			t.Errorf("connect to %v: %v after %v, want refusal at once", refused, err, time.Since(start))
		}
	}
	w.idle(t)
}

func closedPort(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// TestBackPressure has a far side that does not read: the client must be
// stopped after a bounded number of bytes, and lose none of them.
func TestBackPressure(t *testing.T) {
	w := newWorld(t, wire.Config{Limit: 256}, publish(inside4))
	start := make(chan struct{})
	got := make(chan int64, 1)
	w.listen(t, inside4, func(f *gonet.TCPConn) {
		<-start
		n, _ := io.Copy(io.Discard, f)
		got <- n
	})
	c := w.dial(t)
	_ = c.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
	block, sent := make([]byte, 1<<20), int64(0)
	for {
		n, err := c.Write(block)
		sent += int64(n)
		if err != nil {
			break
		}
		if sent > 64<<20 {
			t.Fatal("nothing stops the client")
		}
	}
	close(start)
	_ = c.CloseWrite()
	if n := <-got; n != sent {
		t.Errorf("%d bytes arrived of %d", n, sent)
	}
}

func TestStartErrors(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	busy := taken.Addr().(*net.TCPAddr).AddrPort()
	for _, c := range []struct {
		name string
		cfg  Config
	}{
		{"port in use", Config{Publish: []Mapping{{Outside: busy, Inside: inside4}}}},
		{"forward given twice", Config{Forward: []Mapping{{Outside: busy, Inside: inside4}, {Outside: busy, Inside: inside4}}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, b, err := wire.Pair(wire.Config{})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _, _ = a.Close(), b.Close() }()
			c.cfg.Wire = a
			c.cfg.Prefixes = prefixes("198.18.0.1/15")
			if e, err := Start(c.cfg); err == nil {
				e.Close()
				t.Error("started")
			}
		})
	}
}

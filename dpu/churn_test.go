// SPDX-License-Identifier: Apache-2.0

package dpu_test

import (
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"

	"pno/dpu/netstack"
	"pno/offload"
)

// Many short connections leave nothing behind.
func TestChurn(t *testing.T) {
	r := newRig(t, rigOptions{tcp: netstack.TCP{TimeWait: 50 * time.Millisecond}})
	h := newHost(t, r.agent, testLayout(1))
	l := h.listen(0, dpuAddr+":80")
	h.do(func() { h.serve = func(s *hsock) { s.autoEcho() } })
	l.subscribe(1024)
	const total, at = 3000, 50
	var wg sync.WaitGroup
	for range at {
		wg.Go(func() {
			b := make([]byte, 64)
			for range total / at {
				c := r.remote.dial(t, dpuAddr+":80")
				_, _ = c.Write(b[:10])
				_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
				if n, err := io.ReadFull(c, b[:10]); err != nil {
					t.Errorf("read %d: %v", n, err)
				}
				_ = c.Close()
			}
		})
	}
	wg.Wait()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); {
		st := r.d.Stats()
		if st.Sockets.Open == 1 && st.Sockets.Unaccepted == 0 {
			if st.Sockets.Accepted != total {
				t.Errorf("%d accepted, want %d", st.Sockets.Accepted, total)
			}
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("left: %+v", r.d.Stats().Sockets)
}

// Idle connections cost memory within bounds, and no time.
func TestManyIdleConnections(t *testing.T) {
	n := 2000
	if testing.Short() {
		n = 200
	}
	r := newRig(t, rigOptions{})
	h := newHost(t, r.agent, testLayout(1))
	l := h.listen(0, dpuAddr+":80")
	h.do(func() { h.serve = func(*hsock) {} })
	l.subscribe(4096)
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	conns := make([]net.Conn, n)
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := w; i < n; i += 8 {
				conns[i] = r.remote.dial(t, dpuAddr+":80")
			}
		})
	}
	wg.Wait()
	h.until("all accepted", func() bool { return h.served == n })
	// Both ends live in this process, so a connection counts twice.
	per := (heap() - before) / uint64(n) / 2
	t.Logf("%d bytes an idle connection", per)
	if per > 16<<10 {
		t.Errorf("%d bytes an idle connection, want at most 16 KiB", per)
	}
	for _, c := range conns {
		_ = c.Close()
	}
}

func cpuTime() time.Duration {
	var ru syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &ru)
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

// A DPU with sessions and connections, but without traffic, sleeps.
func TestIdleCostsNothing(t *testing.T) {
	r := newRig(t, rigOptions{shards: 2})
	h := newHost(t, r.agent, testLayout(2))
	h.listen(0, dpuAddr+":80")
	h.listen(1, dpuAddr+":80")
	r.remote.dial(t, dpuAddr+":80")
	h.do(func() { h.sleep = true })
	time.Sleep(100 * time.Millisecond)
	const long, limit = time.Second, 20 * time.Millisecond
	var used time.Duration
	for range 5 { // the runtime may collect garbage, but not in every second
		loops := r.d.Stats().Shards[0].Loops
		before := cpuTime()
		time.Sleep(long)
		used = cpuTime() - before
		t.Logf("%v of CPU in %v, %d turns", used, long, r.d.Stats().Shards[0].Loops-loops)
		if used <= limit || os.Getenv("PNO_TEST_LOG") != "" {
			return
		}
	}
	t.Errorf("%v of CPU in an idle second, want at most %v", used, limit)
}

// counter is the value of one of the stack's counters.
func (r *rig) counter(name string) uint64 {
	for _, c := range r.d.Stats().Netstack {
		if c.Name == name {
			return c.Value
		}
	}
	r.t.Fatalf("there is no counter %s", name)
	return 0
}

// closedByHost makes a connection from a port and leaves it in TIME-WAIT.
func closedByHost(t *testing.T, r *rig, l *hsock, port uint16) {
	t.Helper()
	from := tcpip.FullAddress{Addr: netstack.Address(netip.MustParseAddr(remoteAddr)), Port: port}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c, err := gonet.DialTCPWithBind(ctx, r.remote.s.Stack, from,
		netstack.Full(netip.MustParseAddrPort(dpuAddr+":80")), ipv4.ProtocolNumber)
	if err != nil {
		t.Fatalf("dial from port %d: %v", port, err)
	}
	s := l.accept()
	_ = s.write([]byte("bye"))
	s.close(0)
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
	if b, err := io.ReadAll(c); err != nil || string(b) != "bye" {
		t.Errorf("read: %q, %v", b, err)
	}
	_ = c.Close()
	for end := time.Now().Add(20 * time.Second); r.remote.s.Stats().TCP.CurrentConnected.Value() != 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the peer's end does not close")
		}
	}
}

// A connection in TIME-WAIT keeps no endpoint, and all that one has to do is
// done: its addresses stay taken for a while, but not for its own peer.
func TestTimeWait(t *testing.T) {
	r := newRig(t, rigOptions{tcp: netstack.TCP{TimeWait: 3 * time.Second}})
	h := newHost(t, r.agent, testLayout(1))
	until := func(what string, cond func() bool) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); !cond(); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s: not in time; %d in TIME-WAIT, %d connected", what, r.counter("tcp_time_wait"), r.counter("tcp_connected"))
			}
		}
	}
	l := h.listenWith(0, dpuAddr+":80", offload.BindReuseAddr)
	for range 3 {
		closedByHost(t, r, l, 40001) // which the peer may use again at once
	}
	closedByHost(t, r, l, 40002)
	until("buried", func() bool { return r.counter("tcp_time_wait") == 2 && r.counter("tcp_connected") == 0 })
	until("over", func() bool { return r.counter("tcp_time_wait") == 0 })
	if n := r.counter("tcp_resets_sent"); n != 0 {
		t.Errorf("%d resets", n)
	}
}

// Who does not say SO_REUSEADDR, now or then, waits for the port.
func TestTimeWaitKeepsThePort(t *testing.T) {
	for _, c := range []struct {
		name      string
		was       uint32
		addr      string
		flags     uint32
		wantInUse bool
	}{
		{"neither", 0, dpuAddr + ":80", 0, true},
		{"only now", 0, dpuAddr + ":80", offload.BindReuseAddr, true},
		{"only then", offload.BindReuseAddr, dpuAddr + ":80", 0, true},
		{"both", offload.BindReuseAddr, dpuAddr + ":80", offload.BindReuseAddr, false},
		{"SO_REUSEPORT", 0, dpuAddr + ":80", offload.BindReusePort, false},
		{"every address", 0, "0.0.0.0:80", 0, true},
		{"every address, IPv6 too", 0, "[::]:80", 0, true},
		{"IPv6 only", 0, "[::]:80", offload.BindV6Only, false},
		{"another port", 0, dpuAddr + ":81", 0, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, rigOptions{tcp: netstack.TCP{TimeWait: time.Minute}})
			h := newHost(t, r.agent, testLayout(1))
			l := h.listenWith(0, dpuAddr+":80", c.was)
			closedByHost(t, r, l, 40001)
			for end := time.Now().Add(20 * time.Second); r.counter("tcp_time_wait") != 1; time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					t.Fatal("no connection in TIME-WAIT")
				}
			}
			l.close(0)
			if _, errno := h.bind(0, c.addr, c.flags); (errno == uint32(unix.EADDRINUSE)) != c.wantInUse || errno != 0 && !c.wantInUse {
				t.Errorf("errno %d", errno)
			}
		})
	}
}

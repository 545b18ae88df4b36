// SPDX-License-Identifier: Apache-2.0

package dpu_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"

	"pno/dpu"
	"pno/dpu/link"
	"pno/dpu/netstack"
	"pno/dpu/rss"
	"pno/dpu/session"
	"pno/sim/wire"
)

const (
	dpuAddr    = "198.18.0.2"
	remoteAddr = "198.18.0.9"
)

// rig is a DPU with an agent, and a remote machine on the other end of its
// wire.
type rig struct {
	t      testing.TB
	d      *dpu.DPU
	path   string
	agent  *agent
	remote *remote
	stop   context.CancelFunc
	served chan error
}

type rigOptions struct {
	shards  int
	cores   []int
	queues  int // of the DPU's device; as many as shards if 0
	faults  [2]wire.Faults
	limit   int
	delay   time.Duration
	tcp     netstack.TCP
	seed    uint64
	noSteer bool
	forks   time.Duration // ForkTimeout
}

func newRig(t testing.TB, o rigOptions) *rig {
	t.Helper()
	if o.shards == 0 {
		o.shards = 1
	}
	if o.queues == 0 {
		o.queues = o.shards
	}
	table := rss.New(o.shards, netstack.PortLow, netstack.PortHigh)
	cfg := wire.Config{
		Queues: [2]int{o.queues, 1}, Faults: o.faults, Limit: o.limit, Seed: o.seed,
		MACs: [2][6]byte{{2, 0, 0, 0, 0, 1}, {2, 0, 0, 0, 0, 2}},
	}
	if !o.noSteer {
		cfg.Steer[0] = func(f []byte) int { return max(table.Frame(f), 0) }
	}
	a, b, err := wire.Pair(cfg)
	if err != nil {
		t.Fatal(err)
	}
	level := slog.LevelWarn
	if os.Getenv("PNO_TEST_LOG") != "" {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: level}))
	r := &rig{t: t, path: filepath.Join(t.TempDir(), "ctl"), served: make(chan error, 1)}
	r.d, err = dpu.New(dpu.Config{
		Shards: o.shards, Cores: o.cores, Loopback: true, Control: r.path, ForkTimeout: o.forks, Log: log, TCP: o.tcp,
		Moderation: session.Moderation{MaxDelay: o.delay},
		Interfaces: []dpu.Interface{{Device: a, Driver: "wire", Addresses: []netip.Prefix{
			netip.MustParsePrefix(dpuAddr + "/15"), netip.MustParsePrefix("2001:2::2/48"),
		}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	r.stop = stop
	go func() { r.served <- r.d.Serve(ctx) }()
	select {
	case <-r.d.Ready():
	case err := <-r.served:
		t.Fatal(err)
	}
	r.remote = newRemote(t, b)
	t.Cleanup(func() {
		stop()
		if err := <-r.served; err != nil {
			t.Error(err)
		}
		r.remote.close()
		_ = a.Close()
		_ = b.Close()
	})
	r.agent = dialAgent(t, r.path)
	return r
}

// fuzzRig is one rig for all inputs that a fuzzing process tries.
func fuzzRig(t testing.TB) *rig {
	t.Helper()
	return newRig(t, rigOptions{})
}

// testWriter logs through the test.
type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	if os.Getenv("PNO_TEST_LOG") != "" {
		fmt.Fprintf(os.Stderr, "%s", b)
	}
	return len(b), nil
}

// remote is a machine with the same stack and a plain loop.
type remote struct {
	s    *netstack.Stack
	wake int // eventfd
	stop atomic.Bool
	done chan struct{}
}

func newRemote(t testing.TB, d link.Device) *remote {
	t.Helper()
	r := &remote{done: make(chan struct{})}
	var err error
	if r.wake, err = unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	ep := netstack.NewEndpoint(d.MAC(), d.MTU(), r.nudge)
	r.s, err = netstack.New(netstack.Options{Ports: []netstack.Port{{
		Name: "eth0", Endpoint: ep, Addresses: []netip.Prefix{
			netip.MustParsePrefix(remoteAddr + "/15"), netip.MustParsePrefix("2001:2::9/48"),
		},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	go r.run(ep, d.Queues()[0])
	return r
}

func (r *remote) nudge() {
	one := [8]byte{1}
	_, _ = unix.Write(r.wake, one[:])
}

func (r *remote) run(ep *netstack.Endpoint, q link.Queue) {
	defer close(r.done)
	var frames [64][]byte
	for !r.stop.Load() {
		n, err := q.Recv(frames[:])
		if err != nil {
			return
		}
		for _, f := range frames[:n] {
			ep.Deliver(f)
		}
		q.Release()
		runtime.Gosched()
		m := ep.Drain(q)
		if m > 0 || q.TxPending() {
			if err := q.Flush(); err != nil {
				return
			}
		}
		if n+m > 0 {
			continue
		}
		p := []unix.PollFd{{Fd: int32(q.FD()), Events: unix.POLLIN}, {Fd: int32(r.wake), Events: unix.POLLIN}}
		_, _ = unix.Poll(p, 1000)
		var b [8]byte
		_, _ = unix.Read(r.wake, b[:])
	}
}

func (r *remote) close() {
	r.stop.Store(true)
	r.nudge()
	<-r.done
	r.s.Close()
	_ = unix.Close(r.wake)
}

func (r *remote) dial(t testing.TB, addr string) net.Conn {
	t.Helper()
	ap := netip.MustParseAddrPort(addr)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c, err := gonet.DialContextTCP(ctx, r.s.Stack, netstack.Full(ap), netstack.NetProto(ap.Addr()))
	if err != nil {
		t.Fatalf("dial %s: %v", addr, err)
	}
	return c
}

func (r *remote) listen(t testing.TB, addr string) net.Listener {
	t.Helper()
	ap := netip.MustParseAddrPort(addr)
	l, err := gonet.ListenTCP(r.s.Stack, netstack.Full(ap), netstack.NetProto(ap.Addr()))
	if err != nil {
		t.Fatalf("listen %s: %v", addr, err)
	}
	return l
}

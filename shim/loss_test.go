// SPDX-License-Identifier: Apache-2.0

package shim_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"pno/dpu"
	"pno/host"
	"pno/shim"
	"pno/sim/topology"
)

// parts are a DPU and a host agent that can be stopped one by one.
type parts struct {
	t        *testing.T
	dir      string
	stopDPU  func()
	stopHost func()
}

func startParts(t *testing.T) *parts {
	p := &parts{t: t, dir: t.TempDir()}
	p.startDPU()
	p.startHost()
	t.Cleanup(func() { p.stopHost(); p.stopDPU() })
	t.Setenv("PNO_HOSTD", filepath.Join(p.dir, "hostd"))
	return p
}

// serve runs a daemon; the function that it returns ends it.
func (p *parts) serve(run func(context.Context) error, ready <-chan struct{}) func() {
	p.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	select {
	case <-ready:
	case err := <-done:
		p.t.Fatal(err)
	}
	return func() {
		cancel()
		if err := <-done; err != nil {
			p.t.Error(err)
		}
	}
}

func (p *parts) startDPU() {
	p.t.Helper()
	d, err := dpu.New(dpu.Config{Shards: 2, Loopback: true, Control: filepath.Join(p.dir, "dpud"), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		p.t.Fatal(err)
	}
	p.stopDPU = p.serve(d.Serve, d.Ready())
}

func (p *parts) startHost() {
	p.t.Helper()
	pol := topology.Policy()
	pol.OffloadLoopback = true
	h, err := host.New(host.Config{Listen: filepath.Join(p.dir, "hostd"), DPU: filepath.Join(p.dir, "dpud"), Policy: pol,
		Log: slog.New(slog.DiscardHandler), State: filepath.Join(p.dir, "state")})
	if err != nil {
		p.t.Fatal(err)
	}
	p.stopHost = p.serve(h.Serve, h.Ready())
	if !h.WaitDPU(context.Background(), 10*time.Second) {
		p.t.Fatal("hostd does not reach the DPU")
	}
}

func ping(t *testing.T, a, b net.Conn) {
	t.Helper()
	for _, c := range []net.Conn{a, b} {
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	}
	if _, err := a.Write([]byte("ping")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(b, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
}

// The DPU dies and comes back: connections are reset, what had been received
// can still be read, and the listener is there again under its address.
func TestDPULost(t *testing.T) {
	p := startParts(t)
	l := listen(t, "127.0.0.1:0")
	a, b := pairOn(t, l)
	ping(t, a, b)
	if _, err := a.Write([]byte("left")); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Read(make([]byte, 1)); err != nil { // all of it has come
		t.Fatal(err)
	}
	accepted := make(chan net.Conn, 1)
	go func() {
		c, err := l.Accept() // waits through it all
		if err != nil {
			t.Error(err)
		}
		accepted <- c
	}()
	p.stopDPU()
	if _, err := a.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read after the loss: %v", err)
	}
	if n, err := b.Read(make([]byte, 8)); n != 3 || err != nil {
		t.Errorf("what was received before the loss: %d bytes, %v", n, err)
	}
	if _, err := b.Write(make([]byte, 1)); err == nil {
		t.Error("a write after the loss succeeds")
	}
	if _, err := shim.Dial("tcp", l.Addr().String()); !errors.Is(err, syscall.ENETDOWN) {
		t.Errorf("dial without a DPU, and a policy that refuses: %v", err)
	}
	p.startDPU()
	var c net.Conn
	var err error
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if c, err = shim.Dial("tcp", l.Addr().String()); err == nil {
			break
		}
	}
	if err != nil {
		t.Fatalf("the listener does not come back: %v", err)
	}
	defer func() { _ = c.Close() }()
	ping(t, c, <-accepted)
}

// hostd is replaced: nobody notices, and the next one has the session.
func TestHostdReplaced(t *testing.T) {
	p := startParts(t)
	l := listen(t, "127.0.0.1:0")
	a, b := pairOn(t, l)
	ping(t, a, b)
	p.stopHost()
	ping(t, b, a)
	p.startHost()
	time.Sleep(1500 * time.Millisecond) // the client looks once a second
	ping(t, a, b)
	c, d := pairOn(t, l)
	ping(t, c, d)
	if c.LocalAddr() == nil || d.LocalAddr() == nil {
		t.Error("no address")
	}
}

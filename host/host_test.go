// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pno/host/control/controltest"
	"pno/host/policy"
	"pno/internal/attach"
	"pno/offload"
)

// bench is a server with a scripted DPU.
type bench struct {
	*Server
	t      *testing.T
	dpu    *controltest.Server
	listen string
	stop   func()
}

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

func newBench(t *testing.T, change func(*Config)) *bench {
	t.Helper()
	dir := t.TempDir()
	b := &bench{t: t, listen: filepath.Join(dir, "attach"), dpu: controltest.Start(t, filepath.Join(dir, "dpu"), 2)}
	b.serve(change)
	return b
}

// serve starts a (new) server on the same sockets.
func (b *bench) serve(change func(*Config)) {
	b.t.Helper()
	cfg := Config{Listen: b.listen, DPU: b.dpu.Path, Log: quiet()}
	if change != nil {
		change(&cfg)
	}
	s, err := New(cfg)
	if err != nil {
		b.t.Fatal(err)
	}
	b.Server = s
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	stopped := false
	b.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		select {
		case err := <-done:
			if err != nil {
				b.t.Errorf("Serve: %v", err)
			}
		case <-time.After(15 * time.Second):
			b.t.Error("Serve did not return")
		}
	}
	b.t.Cleanup(b.stop)
	select {
	case <-s.Ready():
	case err := <-done:
		b.t.Fatalf("Serve: %v", err)
	}
}

// eventually waits for a condition, at most a few seconds.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 s: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// client is a shim in Go.
type client struct {
	t    testing.TB
	c    *attach.Conn
	next uint32
	w    *attach.Welcome
	fds  []int // memory, doorbells, interrupt of channel 0
	mem  []byte
}

func dial(t testing.TB, path string) *client {
	t.Helper()
	c, err := attach.Dial(path, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	cl := &client{t: t, c: c}
	t.Cleanup(cl.close)
	return cl
}

func (c *client) close() {
	c.c.Close()
	for _, fd := range c.fds {
		unix.Close(fd)
	}
	c.fds = nil
	if c.mem != nil {
		_ = unix.Munmap(c.mem)
		c.mem = nil
	}
}

func (c *client) ask(m attach.Message, fds ...int) *attach.Packet {
	c.t.Helper()
	c.next++
	if err := c.c.Send(m, c.next, fds...); err != nil {
		c.t.Fatal(err)
	}
	p, err := c.c.Recv()
	if err != nil {
		c.t.Fatalf("answer to %T: %v", m, err)
	}
	if p.ID != c.next {
		c.t.Fatalf("answer to %T has id %d, want %d", m, p.ID, c.next)
	}
	return p
}

func hello(name string) *attach.Hello {
	h := &attach.Hello{ABIMajor: offload.VersionMajor}
	attach.SetText(h.Name[:], name)
	return h
}

// attachAs attaches and maps the memory.
func (b *bench) attachAs(t testing.TB, h *attach.Hello) *client {
	t.Helper()
	c := dial(t, b.listen)
	p := c.ask(h)
	w, ok := p.Msg.(*attach.Welcome)
	if !ok {
		t.Fatalf("got %s", describe(p.Msg))
	}
	c.w, c.fds = w, p.FDs
	if len(c.fds) > 0 {
		var err error
		if c.mem, err = unix.Mmap(c.fds[0], 0, int(w.TotalSize), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

func describe(m attach.Message) string {
	if r, ok := m.(*attach.Refused); ok {
		return fmt.Sprintf("refused: %s, fallback %d: %s", unix.ErrnoName(unix.Errno(r.Err)), r.Fallback, attach.Text(r.Text[:]))
	}
	return fmt.Sprintf("%T %+v", m, m)
}

func (c *client) header() offload.SessionHeader { return *(&memory{page: c.mem}).header() }

// woken tells whether the interrupt of channel 0 was raised.
func woken(fd int) bool {
	n, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 5000)
	return n == 1
}

func TestAttach(t *testing.T) {
	b := newBench(t, nil)
	c := b.attachAs(t, hello("nginx"))
	h := c.header()
	if len(c.fds) != 1+2+1 {
		t.Errorf("%d descriptors", len(c.fds))
	}
	if h.Magic != offload.Magic || h.SessionID != c.w.Session || h.Status != offload.StatusUp || h.TotalSize != c.w.TotalSize || h.Shards != 2 {
		t.Errorf("header %+v", h)
	}
	x := b.dpu.Session(c.w.Session)
	if x == nil || x.Process.PID != os.Getpid() || x.Process.Name != "nginx" || len(x.Channels) != 1 {
		t.Fatalf("the DPU knows %+v", x)
	}
	if err := unix.Ftruncate(c.fds[0], 0); err == nil {
		t.Error("a process can truncate the session memory")
	}
	if c.w.DefaultAction != uint8(policy.Offload) || c.w.NRules != 2 || c.w.Rules[0].Addr[0] != 127 || c.w.Rules[0].Prefix != 8 {
		t.Errorf("rules %+v", c.w.Rules[:c.w.NRules])
	}
	p := c.ask(&attach.ChannelOpen{Channel: 5})
	if m, ok := p.Msg.(*attach.Channel); !ok || m.Channel != 5 || len(p.FDs) != 1 {
		t.Errorf("channel: %s, %d fds", describe(p.Msg), len(p.FDs))
	}
	p.Close()
	if got := b.Report(); len(got.Sessions) != 1 || got.Sessions[0].Channels != 2 || got.DPU.State != "up" {
		t.Errorf("report %+v", got)
	}
}

func TestRefusals(t *testing.T) {
	old := hello("x")
	old.ABIMajor = 9
	t.Run("version", func(t *testing.T) {
		b := newBench(t, nil)
		p := dial(t, b.listen).ask(old)
		if got := describe(p.Msg); got != "refused: EPROTONOSUPPORT, fallback 2: libpno.so speaks protocol version 9.0, hostd 1.1; install the same release of both" {
			t.Error(got)
		}
	})
	t.Run("no DPU", func(t *testing.T) {
		b := newBench(t, func(c *Config) {
			c.DPU += "-none"
			c.DPUWait = 10 * time.Millisecond
			c.Policy, _ = policy.Parse("p", []byte("no_dpu: refuse"))
		})
		got := describe(dial(t, b.listen).ask(hello("x")).Msg)
		if !strings.HasPrefix(got, "refused: ENETDOWN, fallback 3: no DPU: connect to dpud: ") {
			t.Error(got)
		}
		if n := b.Report().Agent.AttachesRefused["no_dpu"]; n != 1 {
			t.Errorf("counted %d", n)
		}
	})
	t.Run("limit", func(t *testing.T) {
		b := newBench(t, func(c *Config) { c.MaxSessions = 1 })
		b.attachAs(t, hello("x"))
		if got := describe(dial(t, b.listen).ask(hello("x")).Msg); got != "refused: EUSERS, fallback 2: all 1 sessions are taken" {
			t.Error(got)
		}
	})
	t.Run("DPU says no", func(t *testing.T) {
		b := newBench(t, nil)
		b.dpu.Hook(func(m *offload.Control) *offload.Control {
			if m.Type == offload.CtlSessionOpen {
				return &offload.Control{Type: offload.CtlError, Error: "full"}
			}
			return nil
		})
		if got := describe(dial(t, b.listen).ask(hello("x")).Msg); got != "refused: ESTALE, fallback 2: the DPU refused session_open: full" {
			t.Error(got)
		}
	})
	t.Run("probe", func(t *testing.T) {
		b := newBench(t, nil)
		h := hello("x")
		h.Flags = attach.HelloProbe
		if m, ok := dial(t, b.listen).ask(h).Msg.(*attach.Ack); !ok || m.Err != 0 {
			t.Errorf("got %+v", m)
		}
		if b.dpu.Sessions() != 0 {
			t.Error("a probe opened a session")
		}
	})
}

func TestLimits(t *testing.T) {
	b := newBench(t, func(c *Config) { c.MaxSessions, c.MaxPerUser = 5, 2 })
	if !b.WaitDPU(t.Context(), 10*time.Second) {
		t.Fatal("no DPU")
	}
	b.mu.Lock()
	for i, uid := range []int{1000, 1000, 1001, 0, 0} {
		b.sessions[uint64(i+1)] = &session{peer: attach.Peer{UID: uid}, ended: true}
	}
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		clear(b.sessions)
		b.mu.Unlock()
	}()
	for _, tt := range []struct {
		name string
		max  int
		uid  int
		want string
	}{
		{"a user who has all his", 6, 1000, "user 1000 has all its 2 sessions"},
		{"a user who has one left", 6, 1001, ""},
		{"root is not limited", 6, 0, ""},
		{"all are taken", 5, 0, "all 5 sessions are taken"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b.cfg.MaxSessions = tt.max
			no := b.mayAttach(t.Context(), attach.Peer{UID: tt.uid}, hello("x"), nil)
			if (no == nil) != (tt.want == "") || no != nil && no.text != tt.want {
				t.Errorf("got %+v, want %q", no, tt.want)
			}
		})
	}
}

func TestProtocolErrorEndsThatSession(t *testing.T) {
	b := newBench(t, nil)
	bad, good := b.attachAs(t, hello("bad")), b.attachAs(t, hello("good"))
	if err := bad.c.Send(&attach.Welcome{}, 9); err != nil {
		t.Fatal(err)
	}
	if _, err := bad.c.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("got %v", err)
	}
	eventually(t, "the DPU drops the session", func() bool { return b.dpu.Session(bad.w.Session) == nil })
	if bad.header().Status != offload.StatusClosed || !woken(bad.fds[3]) {
		t.Error("the process was not told")
	}
	if good.header().Status != offload.StatusUp || b.dpu.Session(good.w.Session) == nil {
		t.Error("another session suffered")
	}
	if n := b.Report().Agent.ProtocolErrors; n != 1 {
		t.Errorf("counted %d", n)
	}
}

func TestDPULossAndReturn(t *testing.T) {
	b := newBench(t, nil)
	c := b.attachAs(t, hello("x"))
	b.dpu.Down()
	if !woken(c.fds[3]) {
		t.Fatal("no interrupt")
	}
	if s := c.header().Status; s != offload.StatusDPULost {
		t.Errorf("status %d", s)
	}
	if r := b.Report(); r.Sessions[0].State != "dpu_lost" || r.DPU.Losses != 1 {
		t.Errorf("report %+v", r)
	}
	b.dpu.Up(t)
	again := b.attachAs(t, hello("x"))
	eventually(t, "only the new session is left", func() bool {
		r := b.Report()
		return len(r.Sessions) == 1 && r.Sessions[0].ID == again.w.Session
	})
	if again.header().Status != offload.StatusUp {
		t.Error("the new session is not up")
	}
}

func TestDPUEndsOneSession(t *testing.T) {
	b := newBench(t, nil)
	bad, good := b.attachAs(t, hello("bad")), b.attachAs(t, hello("good"))
	b.dpu.Kick(t, bad.w.Session, "record beyond the ring")
	if !woken(bad.fds[3]) || bad.header().Status != offload.StatusDPULost {
		t.Error("the process was not told")
	}
	if good.header().Status != offload.StatusUp {
		t.Error("another session suffered")
	}
	if n := b.Report().Agent.SessionsEnded[endDPU]; n != 1 {
		t.Errorf("counted %d", n)
	}
}

func TestKillEndsSession(t *testing.T) {
	b := newBench(t, nil)
	child := b.start(nil, "attach")
	id := child.session()
	if b.dpu.Session(id) == nil {
		t.Fatal("the DPU does not know the session")
	}
	child.kill()
	eventually(t, "the session of a killed process is closed", func() bool {
		return b.dpu.Session(id) == nil && len(b.Report().Sessions) == 0
	})
	if n := b.Report().Agent.SessionsEnded[endExit]; n != 1 {
		t.Errorf("ended: %v", b.Report().Agent.SessionsEnded)
	}
}

// Many processes at once come, and are killed.
func TestManyProcesses(t *testing.T) {
	b := newBench(t, nil)
	b.attachAs(t, hello("stays"))
	before := openFDs(t)
	for range 2 {
		var all []*helperProcess
		for range 15 {
			all = append(all, b.start(nil, "attach"))
		}
		seen := make(map[uint64]bool)
		for _, h := range all {
			seen[h.session()] = true
		}
		if len(seen) != len(all) || b.dpu.Sessions() != len(all)+1 {
			t.Errorf("%d different sessions, the DPU has %d", len(seen), b.dpu.Sessions())
		}
		for _, h := range all {
			h.kill()
		}
		eventually(t, "every session of the dead is closed", func() bool {
			return b.dpu.Sessions() == 1 && len(b.Report().Sessions) == 1
		})
	}
	eventually(t, "no descriptor is left", func() bool { return openFDs(t) <= before+2 })
}

func openFDs(t *testing.T) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

func heapInUse() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// A thousand images of one process, each taking over from the one before.
func TestNothingLeaks(t *testing.T) {
	b := newBench(t, nil)
	cycle := func() {
		conn, err := attach.Dial(b.listen, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		c := &client{t: t, c: conn} // not dial: the test would hold on to it
		p := c.ask(hello("x"))
		c.w, c.fds = p.Msg.(*attach.Welcome), p.FDs
		reg := &attach.RegisterSocket{Cookie: 77}
		reg.Kind, reg.Handle[0] = attach.SockListener, 1<<31
		c.ask(reg)
		c.ask(&attach.Ready{})
		c.close()
	}
	settle := func() int {
		eventually(t, "one kept session is left", func() bool { return len(b.Report().Sessions) == 1 && b.dpu.Sessions() == 1 })
		return openFDs(t)
	}
	for range 20 {
		cycle()
	}
	before, heap := settle(), heapInUse()
	for range 1000 {
		cycle()
	}
	eventually(t, "no descriptor is leaked", func() bool { return settle() <= before+2 })
	if now := heapInUse(); now > heap+2<<20 {
		t.Errorf("heap grew from %d to %d bytes", heap, now)
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(maps), "memfd:pno-session"); n > 2 { // the kept one, and the DPU's view of it
		t.Errorf("%d session memories are mapped", n)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.holders) != 1 || len(b.adopted) != 0 || len(b.grants) != 0 {
		t.Errorf("%d holders, %d adopted, %d grants", len(b.holders), len(b.adopted), len(b.grants))
	}
}

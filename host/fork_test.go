// SPDX-License-Identifier: Apache-2.0

package host

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pno/host/report"
	"pno/internal/attach"
	"pno/offload"
)

const handle = offload.HandleHost | 7

func (c *client) register(cookie uint64) {
	c.t.Helper()
	m := &attach.RegisterSocket{Cookie: cookie}
	m.Kind, m.Handle[0], m.Handle[1] = attach.SockListener, handle, handle+1
	if a, ok := c.ask(m).Msg.(*attach.Ack); !ok || a.Err != 0 {
		c.t.Fatalf("register: %+v", a)
	}
}

func TestForkedChildAttaches(t *testing.T) {
	for _, tt := range []struct{ name, steps string }{
		{"says it first", "forked=T attach=T"},
		{"says it late", "attach=T forked=T"},
		{"never says it", "attach=T"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t, nil)
			parent := b.attachAs(t, hello("master"))
			parent.register(50)
			b.dpu.Grant(tokenHex("T"))
			child := b.start(parent, tt.steps)
			id := child.session()
			if b.dpu.Grants() != 0 || b.dpu.Session(id) == nil {
				t.Fatalf("not adopted: %v", b.dpu.Log())
			}
			if strings.Contains(tt.steps, "forked") {
				eventually(t, "the child holds its parent's sockets", func() bool {
					b.mu.Lock()
					defer b.mu.Unlock()
					return len(b.holders[50]) == 2
				})
			}
			child.kill()
			eventually(t, "the child's session is closed, the parent's not", func() bool {
				return b.dpu.Session(id) == nil && b.dpu.Session(parent.w.Session) != nil
			})
			b.mu.Lock()
			defer b.mu.Unlock()
			if len(b.grants) != 0 || len(b.adopted) != 0 || len(b.holders[50]) != 1 {
				t.Errorf("left: %d grants, %d adopted, %d holders", len(b.grants), len(b.adopted), len(b.holders[50]))
			}
		})
	}
}

// What the child closes, it has no more, whenever hostd hears of the fork; nor
// has it what its parent registers later.
func TestForkedChildUnregisters(t *testing.T) {
	for _, steps := range []string{
		"forked=T attach=T unregister=50 unregister=51",
		"attach=T unregister=50 unregister=51 forked=T",
	} {
		t.Run(steps, func(t *testing.T) {
			b := newBench(t, nil)
			parent := b.attachAs(t, hello("master"))
			parent.register(50)
			parent.register(52)
			b.dpu.Grant(tokenHex("T"))
			child := b.start(parent, steps)
			child.session()
			child.says("unregistered")
			eventually(t, "the child holds what it has not closed", func() bool {
				b.mu.Lock()
				defer b.mu.Unlock()
				return len(b.holders[52]) == 2
			})
			parent.register(53)
			parent.forked("T", child.cmd.Process.Pid)
			parent.register(54) // after it, on the same connection
			b.mu.Lock()
			defer b.mu.Unlock()
			if a, b := len(b.holders[50]), len(b.holders[53]); a != 1 || b != 1 {
				t.Errorf("%d hold what the child has closed, %d what is the parent's alone", a, b)
			}
		})
	}
}

func TestForkedChildNeverAttaches(t *testing.T) {
	b := newBench(t, nil)
	parent := b.attachAs(t, hello("master"))
	b.dpu.Grant(tokenHex("T"))
	child := b.start(parent, "forked=T")
	child.says("forked")
	eventually(t, "the child is watched", func() bool { return b.Report().Agent.Forks == 1 })
	if b.dpu.Grants() != 1 {
		t.Fatal("the grant is gone while the child lives")
	}
	child.kill()
	eventually(t, "the grant goes with the child", func() bool { return b.dpu.Grants() == 0 })
	if r := b.Report(); r.Agent.ForksDropped != 1 || len(r.Sessions) != 1 {
		t.Errorf("report %+v", r.Agent)
	}
}

func TestForkFailed(t *testing.T) {
	b := newBench(t, nil)
	parent := b.attachAs(t, hello("master"))
	b.dpu.Grant(tokenHex("T"))
	parent.forked("T", 0)
	eventually(t, "the grant is dropped", func() bool { return b.dpu.Grants() == 0 })
}

// daemon(3): the parent is gone before its child says anything.
func TestChildOutlivesParent(t *testing.T) {
	b := newBench(t, nil)
	b.dpu.Grant(tokenHex("T"))
	// This process is the middle man that keeps the dead parent's connection.
	parent := b.start(nil, "attach")
	id := parent.session()
	b.mu.Lock()
	x := b.sessions[id]
	b.mu.Unlock()
	parent.kill()
	eventually(t, "the parent's session is closed", func() bool { return b.dpu.Session(id) == nil })
	b.forked(x, &attach.Forked{Token: tokenOf("T"), PID: 1}, attach.Peer{PID: os.Getpid()})
	if b.dpu.Grants() != 1 {
		t.Fatal("the grant went with the parent")
	}
	h := hello("child")
	h.Flags, h.Token = attach.HelloToken, tokenOf("T")
	b.attachAs(t, h)
	if b.dpu.Grants() != 0 {
		t.Error("the child did not adopt")
	}
}

func TestForeignTokenRefused(t *testing.T) {
	b := newBench(t, nil)
	parent := b.attachAs(t, hello("master"))
	b.dpu.Grant(tokenHex("T"))
	child := b.start(parent, "forked=T")
	child.says("forked")
	eventually(t, "the child is watched", func() bool { return b.Report().Agent.Forks == 1 })
	h := hello("thief")
	h.Flags, h.Token = attach.HelloToken, tokenOf("T")
	got := describe(dial(t, b.listen).ask(h).Msg)
	if !strings.Contains(got, "the fork token is another process's") {
		t.Error(got)
	}
	if b.dpu.Grants() != 1 {
		t.Error("the grant was taken")
	}
}

func TestLookup(t *testing.T) {
	b := newBench(t, nil)
	holder := b.attachAs(t, hello("old"))
	holder.register(60)
	child := b.start(nil, "attach lookup=60 lookup=60 lookup=61")
	id := child.session()
	for _, want := range []string{"socket 80000007 80000008", "socket 80000007 80000008", "refused: ENOENT, fallback 0: no session holds this socket"} {
		if got := child.says("lookup"); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if x := b.dpu.Session(id); !x.Sockets[handle] || !x.Sockets[handle+1] {
		t.Errorf("the DPU gave %v", x.Sockets)
	}
	if n := b.Report().Agent.SocketsMoved; n != 1 {
		t.Errorf("moved %d", n)
	}
	// The former holder goes, as the old process of a reload: the receiver
	// passes the socket on.
	if a := holder.ask(&attach.UnregisterSocket{Cookie: 60}).Msg.(*attach.Ack); a.Err != 0 {
		t.Errorf("unregister: %d", a.Err)
	}
	third := b.start(nil, "attach lookup=60")
	if got := third.says("lookup"); got != "socket 80000007 80000008" {
		t.Errorf("got %q", got)
	}
	log := b.dpu.Log()
	if last := log[len(log)-1]; !strings.Contains(last, "socket_transfer") || strings.Contains(last, "from=0 ") {
		t.Errorf("last request %q", last)
	}
}

func TestProof(t *testing.T) {
	b := newBench(t, nil)
	c := b.attachAs(t, hello("x"))
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	cookie := cookieOf(fd)
	if cookie == 0 {
		t.Fatal("no cookie")
	}
	m := &attach.RegisterSocket{Cookie: cookie}
	m.Kind, m.Handle[0] = attach.SockListener, handle
	if a, ok := c.ask(m, fd).Msg.(*attach.Ack); !ok || a.Err != 0 {
		t.Errorf("own socket: %+v", a)
	}
	m.Cookie++
	if err := c.c.Send(m, 99, fd); err != nil {
		t.Fatal(err)
	}
	if _, err := c.c.Recv(); err == nil {
		t.Error("another socket's cookie was accepted")
	}
}

// exec without a fork: the image's session stays until the new image is ready.
func TestExecKeepsSession(t *testing.T) {
	b := newBench(t, nil)
	old := b.attachAs(t, hello("old"))
	old.register(70)
	old.c.Close()
	eventually(t, "the session is kept", func() bool {
		r := b.Report()
		return len(r.Sessions) == 1 && r.Sessions[0].State == "exec"
	})
	now := b.attachAs(t, hello("new"))
	if got := lookupText(now.ask(&attach.LookupSocket{Cookie: 70})); got != "socket 80000007 80000008" {
		t.Errorf("got %q", got)
	}
	if b.dpu.Session(old.w.Session) == nil {
		t.Fatal("the old session went too early")
	}
	now.ask(&attach.Ready{})
	eventually(t, "the old session is closed", func() bool { return b.dpu.Session(old.w.Session) == nil })
	if b.Report().Agent.SessionsEnded[endExec] != 1 {
		t.Errorf("ended: %v", b.Report().Agent.SessionsEnded)
	}
}

// fork and exec without attaching between, and the parent dies: nginx's binary
// upgrade at its worst. The child's grant carries the sockets over.
func TestForkExecKeepsGrant(t *testing.T) {
	b := newBench(t, nil)
	parent := b.start(nil, "attach")
	id := parent.session()
	b.mu.Lock()
	x := b.sessions[id]
	b.mu.Unlock()
	row := &attach.SocketInfo{Kind: attach.SockListener}
	row.Handle[0] = handle
	b.mu.Lock()
	b.addHolder(80, x, row)
	b.mu.Unlock()
	b.dpu.Grant(tokenHex("T"))
	b.forked(x, &attach.Forked{Token: tokenOf("T"), PID: 1}, attach.Peer{PID: os.Getpid()})
	parent.kill()
	eventually(t, "the parent's session is closed", func() bool { return b.dpu.Session(id) == nil })

	c := b.attachAs(t, hello("new image"))
	if got := lookupText(c.ask(&attach.LookupSocket{Cookie: 80})); got != "socket 80000007 0" {
		t.Errorf("got %q", got)
	}
	c.ask(&attach.Ready{})
	eventually(t, "only the new image's session is left", func() bool {
		return b.dpu.Sessions() == 1 && len(b.Report().Sessions) == 1 && b.dpu.Grants() == 0
	})
}

func TestReadoption(t *testing.T) {
	b := newBench(t, nil)
	c := b.attachAs(t, hello("nginx"))
	p := c.ask(&attach.ChannelOpen{Channel: 1})
	intr := []int{c.fds[len(c.fds)-1], p.FDs[0]}
	defer p.Close()
	b.stop()
	if c.header().Status != offload.StatusUp || b.dpu.Session(c.w.Session) == nil {
		t.Fatal("a stopping hostd ended the session")
	}
	b.serve(nil)
	h := hello("nginx")
	h.Session = c.w.Session
	again := dial(t, b.listen)
	ans := again.ask(h, append([]int{c.fds[0]}, intr...)...)
	w, ok := ans.Msg.(*attach.Welcome)
	if !ok || w.Session != c.w.Session || len(ans.FDs) != 0 {
		t.Fatalf("got %s", describe(ans.Msg))
	}
	if r := b.Report(); r.Agent.Readopted != 1 || len(r.Sessions) != 1 || r.Sessions[0].Channels != 2 {
		t.Errorf("report %+v", r)
	}
	b.dpu.Down()
	if !woken(intr[1]) || c.header().Status != offload.StatusDPULost {
		t.Error("the re-adopted session was not told of the loss")
	}
}

func TestReadoptionRefused(t *testing.T) {
	b := newBench(t, nil)
	c := b.attachAs(t, hello("x"))
	unsealed, err := unix.MemfdCreate("x", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(unsealed)
	_ = unix.Ftruncate(unsealed, 1<<20)
	other := b.start(nil, "attach")
	for _, tt := range []struct {
		name string
		id   uint64
		fds  []int
		want string
	}{
		{"no memory", 5, nil, "the session memory and an interrupt must come with the message"},
		{"not sealed", 5, []int{unsealed, c.fds[3]}, "session memory without its seals"},
		{"another process's", other.session(), []int{c.fds[0], c.fds[3]}, "the session is another process's"},
		{"unknown to the DPU", 5, []int{c.fds[0], c.fds[3]}, "the DPU refused session_open"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := hello("x")
			h.Session = tt.id
			got := describe(dial(t, b.listen).ask(h, tt.fds...).Msg)
			if !strings.HasPrefix(got, "refused: ESTALE") && !strings.HasPrefix(got, "refused: ENOMEM") || !strings.Contains(got, tt.want) {
				t.Errorf("got %s", got)
			}
		})
	}
	if c.header().Status != offload.StatusDPULost || !woken(c.fds[3]) {
		t.Error("the process was not told that its session is gone")
	}
}

// A connection that broke is replaced; the session goes on.
func TestReconnect(t *testing.T) {
	b := newBench(t, nil)
	c := b.attachAs(t, hello("x"))
	c.c.Close()
	eventually(t, "the session is kept", func() bool { return b.Report().Sessions[0].State == "exec" })
	h := hello("x")
	h.Session = c.w.Session
	again := b.attachAs(t, h)
	if again.w.Session != c.w.Session || b.Report().Sessions[0].State != "up" {
		t.Errorf("got session %d, %s", again.w.Session, b.Report().Sessions[0].State)
	}
	again.register(5)
}

func TestRunPolicy(t *testing.T) {
	dir := t.TempDir()
	good, bad := filepath.Join(dir, "good"), filepath.Join(dir, "bad")
	_ = os.WriteFile(good, []byte("default: kernel\n"), 0o600)
	_ = os.WriteFile(bad, []byte("default: x\n"), 0o600)
	ask := func(b *bench, file string) string {
		h := hello("x")
		attach.SetText(h.Policy[:], file)
		p := dial(t, b.listen).ask(h)
		defer p.Close()
		if w, ok := p.Msg.(*attach.Welcome); ok {
			return []string{"", "offload", "kernel", "refuse"}[w.DefaultAction]
		}
		return describe(p.Msg)
	}
	on, off := newBench(t, func(c *Config) { c.RunPolicies = true }), newBench(t, nil)
	tests := []struct {
		name string
		b    *bench
		file string
		want string
	}{
		{"none", on, "", "offload"},
		{"good", on, good, "kernel"},
		{"bad", on, bad, "refused: EINVAL, fallback 2: " + bad + `:1:10: "x" is not an action; use offload, kernel or refuse`},
		{"relative", on, "good", "refused: EINVAL, fallback 2: policy good: the name is not absolute"},
		{"directory", on, dir, "refused: EINVAL, fallback 2: policy " + dir + ": not a regular file"},
		{"switched off", off, good, "refused: EINVAL, fallback 2: policy " + good + ": this hostd takes no policies of programs (run_policies: false)"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := ask(tt.b, tt.file); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestReadOwned(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make files of other users")
	}
	file := filepath.Join(t.TempDir(), "f")
	for _, tt := range []struct {
		name      string
		owner     int
		mode      os.FileMode
		uid       int
		permitted bool
	}{
		{"own", 1000, 0o600, 1000, true},
		{"another's", 1001, 0o644, 1000, false},
		{"root's secret", 0, 0o600, 1000, false},
		{"root's public", 0, 0o644, 1000, true},
		{"root asks", 1001, 0o600, 0, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_ = os.Remove(file)
			if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chown(file, tt.owner, -1); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(file, tt.mode); err != nil {
				t.Fatal(err)
			}
			if _, err := readOwned(file, tt.uid); (err == nil) != tt.permitted {
				t.Errorf("got %v", err)
			}
		})
	}
}

// Statistics of ended sessions stay in the totals.
func TestStatsAccumulate(t *testing.T) {
	b := newBench(t, nil)
	for range 2 {
		c := b.attachAs(t, hello("x"))
		i := counterIndex["bytes_tx"]
		c.mem[offload.StatsOffset+8*i] = 100
		c.mem[offload.StatsOffset+8*counterIndex["sockets_kernel_udp"]] = 3
		c.ask(&attach.Ready{})
		c.close()
	}
	r := b.Report()
	if r.BytesTx != 200 || r.SocketsKernel["udp"] != 6 {
		t.Errorf("bytes_tx %d, kernel %v", r.BytesTx, r.SocketsKernel)
	}
	if i := slices.IndexFunc(r.Counters, func(c report.Counter) bool { return c.Name == "bytes_tx" }); i < 0 || r.Counters[i].Value != 200 {
		t.Errorf("counters %+v", r.Counters)
	}
}

// Connections that say nothing, or nonsense, end; the server goes on.
func TestGarbage(t *testing.T) {
	b := newBench(t, nil)
	for _, text := range []string{"x", strings.Repeat("y", 4000), strings.Repeat("z", 60000)} {
		c, err := net.Dial("unixpacket", b.listen)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := c.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
			t.Errorf("%d bytes: the connection goes on (%v)", len(text), err)
		}
		c.Close()
	}
	if n := b.Report().Agent.ProtocolErrors; n != 3 {
		t.Errorf("counted %d", n)
	}
	b.attachAs(t, hello("x"))
}

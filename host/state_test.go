// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pno/internal/attach"
	"pno/offload"
)

// stateful returns a bench whose servers keep state in one directory.
func stateful(t *testing.T) (*bench, func(*Config), string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "state")
	change := func(c *Config) { c.State = dir }
	return newBench(t, change), change, dir
}

func files(t *testing.T, dir string) int {
	t.Helper()
	names, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, name := range names {
		if name.Name()[0] != '.' {
			n++
		}
	}
	return n
}

// Two agents on one directory would take each other's sessions.
func TestStateDirectoryIsExclusive(t *testing.T) {
	b, _, dir := stateful(t)
	s, err := New(Config{Listen: b.listen + "2", DPU: b.dpu.Path, Log: quiet(), State: dir})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Serve(t.Context()); err == nil || !strings.Contains(err.Error(), "belongs to another hostd that runs") {
		t.Errorf("got %v", err)
	}
}

// In a place where everybody may write, somebody may have been there before.
func TestStateDirectoryOfOthers(t *testing.T) {
	for _, tc := range []struct {
		name    string
		prepare func(dir string) error
	}{
		{"symbolic link", func(dir string) error { return os.Symlink(t.TempDir(), dir) }},
		{"writable by all", func(dir string) error { return errors.Join(os.Mkdir(dir, 0o700), os.Chmod(dir, 0o777)) }},
		{"another user's", func(dir string) error {
			if os.Geteuid() != 0 {
				t.Skip("not root: cannot give a directory away")
			}
			return errors.Join(os.Mkdir(dir, 0o700), os.Chown(dir, 65534, 65534))
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "state")
			if err := tc.prepare(dir); err != nil {
				t.Fatal(err)
			}
			if _, err := newState(dir, func(error) {}); err == nil || !strings.Contains(err.Error(), "nobody else may write") {
				t.Errorf("got %v", err)
			}
		})
	}
}

// The process has its interrupts open too, and can make a write to them block.
func TestRaiseDoesNotWaitForTheProcess(t *testing.T) {
	fd, err := newEvent()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	full := [8]byte{0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	if _, err := unix.Write(fd, full[:]); err != nil {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(fd, false); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); raise(fd) }()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("raise blocks")
	}
}

// The process does nothing at all while hostd is replaced.
func TestRestartFindsIdleProcess(t *testing.T) {
	b, change, dir := stateful(t)
	c := b.attachAs(t, hello("nginx"))
	p := c.ask(&attach.ChannelOpen{Channel: 1})
	defer p.Close()
	c.register(90)
	b.stop()
	b.serve(change)
	eventually(t, "the session is re-adopted", func() bool { return b.Report().Agent.Readopted == 1 })
	r := b.Report()
	if len(r.Sessions) != 1 || r.Sessions[0].ID != c.w.Session || r.Sessions[0].Channels != 2 || r.Sessions[0].Registered != 1 {
		t.Fatalf("report %+v", r.Sessions)
	}

	// It can be spoken to again, and its sockets can be handed on.
	h := hello("nginx")
	h.Session = c.w.Session
	again := b.attachAs(t, h)
	again.register(91)
	other := b.start(nil, "attach lookup=90")
	if got := other.says("lookup"); got != "socket 80000007 80000008" {
		t.Errorf("got %q", got)
	}
	other.kill()

	// It learns of the DPU's loss, on every channel.
	b.dpu.Down()
	if !woken(p.FDs[0]) || !woken(c.fds[3]) || c.header().Status != offload.StatusDPULost {
		t.Error("the loss of the DPU was not told")
	}
	eventually(t, "nothing is kept of lost sessions", func() bool { return files(t, dir) == 0 })
}

func TestRestartAfterProcessDied(t *testing.T) {
	b, change, dir := stateful(t)
	before, after := b.start(nil, "attach"), b.start(nil, "attach")
	gone, lives := before.session(), after.session()
	eventually(t, "both are on file", func() bool { return files(t, dir) == 2 })
	b.stop()
	before.kill()
	b.serve(change)
	eventually(t, "the DPU is told of the one, asked for the other", func() bool {
		return b.dpu.Session(gone) == nil && b.dpu.Session(lives) != nil && b.Report().Agent.Readopted == 1
	})
	after.kill()
	eventually(t, "a re-adopted session ends with its process", func() bool {
		return b.dpu.Session(lives) == nil && files(t, dir) == 0
	})
}

func TestRestartAfterDPUDied(t *testing.T) {
	b, change, _ := stateful(t)
	c := b.attachAs(t, hello("x"))
	b.stop()
	b.dpu.Down()
	b.dpu.Up(t)
	b.serve(change)
	if !woken(c.fds[3]) || c.header().Status != offload.StatusDPULost {
		t.Error("the process was not told")
	}
}

func TestRestartKeepsForks(t *testing.T) {
	b, change, _ := stateful(t)
	parent := b.attachAs(t, hello("master"))
	b.dpu.Grant(tokenHex("A"))
	b.dpu.Grant(tokenHex("B"))
	one, two := b.start(parent, "forked=A"), b.start(parent, "forked=B")
	one.says("forked")
	two.says("forked")
	eventually(t, "both are watched", func() bool { return b.Report().Agent.Forks == 2 })
	b.stop()
	one.kill()
	b.serve(change)
	eventually(t, "the grant of the child that died is dropped", func() bool { return b.dpu.Grants() == 1 })
	two.kill()
	eventually(t, "the other is dropped when its child dies", func() bool { return b.dpu.Grants() == 0 })
}

func TestStateFilesOfOthers(t *testing.T) {
	b, change, dir := stateful(t)
	b.stop()
	for name, text := range map[string]string{
		"session-1": "{", "session-2": `{"version":9}`, "other": "x",
		"session-3": `{"version":1,"id":"3","pid":1,"start":1,"layout":{"channels":1,"shards":1,"h2d_size":65536,"d2h_size":65536,"rx_window":32768,"tx_window":32768}}`,
		"fork-x":    `{"version":1,"token":"x","pid":1,"start":1}`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b.serve(change)
	b.attachAs(t, hello("x"))
	eventually(t, "only the new session is on file", func() bool { return files(t, dir) <= 2 && len(b.Report().Sessions) == 1 })
}

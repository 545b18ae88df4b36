// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pno/host/policy"
	"pno/internal/attach"
	"pno/internal/config"
)

// The samples must load, and hostd.yaml must show the defaults.
func TestSamples(t *testing.T) {
	var got settings
	if err := config.Load("../../deploy/hostd.yaml", &got); err != nil {
		t.Fatal(err)
	}
	if want := defaultSettings(); got != want {
		t.Errorf("deploy/hostd.yaml\nsays     %+v\ndefaults %+v", got, want)
	}
	p, err := policy.Load("../../deploy/policy.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Rules) != 2 {
		t.Errorf("%d rules", len(p.Rules))
	}
}

func TestSettingsErrors(t *testing.T) {
	tests := []struct{ name, in, want string }{
		{"unknown key", "lisen: x", `c:1:1: unknown key "lisen"; did you mean "listen"?`},
		{"path", "listen: \"\"", `c:1:9: "" is not a path of a Unix socket; it has 1 to 107 bytes`},
		{"mode", "socket_mode: rw", `c:1:14: "rw" is not a file mode; write it in octal, as 0660`},
		{"metrics beyond loopback", "metrics: 0.0.0.0:9465", `c:1:10: "0.0.0.0:9465" is not a loopback address with a port, as 127.0.0.1:9465, nor none`},
		{"level", "log:\n  level: loud", `c:2:10: "loud" is not a level; use debug, info, warn or error`},
		{"ring", "session:\n  h2d_ring: 3MiB", `c:2:3: host-to-DPU ring of 3145728 bytes is not a power of two from 65536 to 67108864: bad session layout`},
		{"ring too large", "session:\n  h2d_ring: 1GiB", `c:2:13: 1GiB is more than the largest ring, 64MiB`},
		{"window", "session:\n  rx_window: 1MiB", `c:2:3: receive window 1048576, want 32768 to 524288: bad session layout`},
		{"limit", "limits: {sessions: 5000}", `c:1:20: 5000 sessions, want 1 to 4096`},
		{"spin", "session: {spin: 2s}", `c:1:17: a thread that polls longer than 1s burns its core`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			set := defaultSettings()
			err := config.Parse("c", []byte(tt.in), &set)
			if err == nil || err.Error() != tt.want {
				t.Errorf("got  %v\nwant %s", err, tt.want)
			}
		})
	}
}

func TestMain(m *testing.M) {
	if os.Getenv("PNO_TEST_HOSTD") != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// The program itself: ready, attachable, reloads, stops.
func TestProgram(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	pol := write("policy.yaml", "no_dpu: refuse\n")
	conf := write("hostd.yaml", fmt.Sprintf("listen: %s/a\ndpu: %s/d\ndpu_wait: 1ms\nadmin: %s/sub/admin\nmetrics: none\nstate: %s/state\npolicy: %s\n", dir, dir, dir, dir, pol))
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "n"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer notify.Close()
	logs := new(strings.Builder)
	cmd := exec.Command(os.Args[0], "--config", conf)
	cmd.Env = append(os.Environ(), "PNO_TEST_HOSTD=1", "NOTIFY_SOCKET="+filepath.Join(dir, "n"))
	cmd.Stderr = logs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill() }()
	told := func(want string) {
		t.Helper()
		buf := make([]byte, 256)
		_ = notify.SetReadDeadline(time.Now().Add(10 * time.Second))
		if n, err := notify.Read(buf); err != nil || string(buf[:n]) != want {
			t.Fatalf("systemd was told %q (%v), want %q\n%s", buf[:n], err, want, logs)
		}
	}
	told("READY=1")

	fallback := func() (unix.Errno, policy.Action) {
		c, err := attach.Dial(filepath.Join(dir, "a"), time.Second)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.Send(&attach.Hello{ABIMajor: 1}, 1); err != nil {
			t.Fatal(err)
		}
		p, err := c.Recv()
		if err != nil {
			t.Fatal(err)
		}
		r := p.Msg.(*attach.Refused)
		return unix.Errno(r.Err), policy.Action(r.Fallback)
	}
	if errno, then := fallback(); errno != unix.ENETDOWN || then != policy.Refuse {
		t.Errorf("got %v, %v", errno, then)
	}
	write("policy.yaml", "no_dpu: kernel\n")
	_ = cmd.Process.Signal(unix.SIGHUP)
	deadline := time.Now().Add(10 * time.Second)
	for {
		if _, then := fallback(); then == policy.Kernel {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the policy was not reloaded")
		}
		time.Sleep(5 * time.Millisecond)
	}
	_ = cmd.Process.Signal(unix.SIGTERM)
	told("STOPPING=1")
	if err := cmd.Wait(); err != nil {
		t.Errorf("exit: %v\n%s", err, logs)
	}
}

func TestCommandErrors(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "p.yaml")
	if err := os.WriteFile(bad, []byte("rules:\n  - action: drop\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	good := filepath.Join(t.TempDir(), "hostd.yaml")
	if err := os.WriteFile(good, []byte("listen: /dev/null/x/s\nadmin: /dev/null/x/a\nmetrics: none\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		args []string
		code int
		want string
	}{
		"no such configuration": {[]string{"--config", "/none.yaml"}, exitUsage, "read configuration: open /none.yaml: no such file or directory"},
		"bad policy":            {[]string{"--policy", bad, "--check"}, exitUsage, bad + `:2:13: "drop" is not an action; use offload, kernel or refuse`},
		"wrong flag":            {[]string{"--lisen", "x"}, exitUsage, "unknown flag: --lisen"},
		"cannot run": {[]string{"--config", good}, exitFailed,
			"make the directory of a socket: mkdir /dev/null: not a directory"},
	} {
		t.Run(name, func(t *testing.T) {
			code := exitUsage
			cmd := newRootCmd(&code)
			cmd.SetArgs(tt.args)
			if err := cmd.Execute(); err == nil || err.Error() != tt.want || code != tt.code {
				t.Errorf("got  %v, code %d\nwant %s, code %d", err, code, tt.want, tt.code)
			}
		})
	}
}

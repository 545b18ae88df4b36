// SPDX-License-Identifier: Apache-2.0

package host

import (
	"net"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pno/internal/attach"
)

// A shim announces a program: each process is counted, the program is said to
// be new once.
func TestBypassAnnounced(t *testing.T) {
	e := newBench(t, nil)
	for i, want := range []unix.Errno{0, unix.EALREADY} {
		c, err := attach.Dial(e.listen, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		m := &attach.Bypass{Reason: attach.BypassStatic}
		attach.SetText(m.Program[:], "/bin/busy\x1bbox")
		if err := c.Send(m, 7); err != nil {
			t.Fatal(err)
		}
		p, err := c.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if ack, ok := p.Msg.(*attach.Ack); !ok || unix.Errno(ack.Err) != want || p.ID != 7 {
			t.Errorf("announcement %d is answered by %+v", i, p.Msg)
		}
		c.Close()
	}
	r := e.Report()
	if len(r.Bypassing) != 1 || r.Bypassing[0].PID != os.Getpid() || r.Bypassing[0].Name != "busy?box" || r.Agent.Bypassing["static"] != 1 {
		t.Errorf("reported %+v, %v", r.Bypassing, r.Agent.Bypassing)
	}
}

// Processes that were not sent to this hostd are none of its business, whatever
// sockets they hold.
func TestBypassOthersAreLeftAlone(t *testing.T) {
	e := newBench(t, func(c *Config) { c.BypassEvery = 10 * time.Millisecond })
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, tc := range []struct {
		name string
		env  []string
		want bool
	}{
		{"sent here", []string{"PNO_HOSTD=" + e.listen, "LD_PRELOAD=/nowhere/libpno.so"}, true},
		{"sent to another hostd", []string{"PNO_HOSTD=/elsewhere", "LD_PRELOAD=/nowhere/libpno.so"}, false},
		{"not sent", nil, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cmd := exec.Command("sleep", "60")
			cmd.Env, cmd.ExtraFiles = tc.env, []*os.File{f}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
			found := func() bool {
				for _, b := range e.Report().Bypassing {
					if b.PID == cmd.Process.Pid {
						if b.Reason != "not_loaded" || b.Sockets != 1 || b.Name != "sleep" {
							t.Errorf("found %+v", b)
						}
						return true
					}
				}
				return false
			}
			end := time.Now().Add(500 * time.Millisecond)
			if tc.want {
				end = time.Now().Add(10 * time.Second)
			}
			for !found() && time.Now().Before(end) {
				time.Sleep(10 * time.Millisecond)
			}
			if found() != tc.want {
				t.Errorf("found %v, want %v", !tc.want, tc.want)
			}
		})
	}
}

// The look-out reads every process's environment, and must not leave a buffer
// of the longest one behind for each.
func TestBypassScanLeavesLittleBehind(t *testing.T) {
	e := newBench(t, nil)
	b := newBypasses(e.Server)
	b.scan(time.Now()) // makes the buffer
	clear(b.known)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	b.scan(time.Now())
	runtime.ReadMemStats(&after)
	if len(b.known) == 0 {
		t.Fatal("no process was looked at")
	}
	if each := (after.TotalAlloc - before.TotalAlloc) / uint64(len(b.known)); each > maxEnviron/4 {
		t.Errorf("%d bytes were allocated for each of %d processes", each, len(b.known))
	}
}

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The tests of programs run what Debian ships, each under a simulation of its
// own, and ask three things: that the content is right, that the statistics
// show its sockets on the DPU, and that it ends as it does without the shim.

// program is one simulation with its command.
type program struct {
	*lab
	p    *proc
	name string
}

// program starts argv under pno sim.
func (l *lab) program(name string, o spawnOptions, flags []string, argv ...string) *program {
	l.t.Helper()
	return &program{lab: l, p: l.sim(name, o, flags, argv...), name: name}
}

// stop asks the program to end, and checks how it did and what it left.
func (g *program) stop(sig syscall.Signal, offloaded uint64) simReport {
	g.t.Helper()
	g.p.stop(sig, 20*time.Second)
	return g.check(offloaded)
}

// finish waits for a program that ends by itself, and does well.
func (g *program) finish(timeout time.Duration, offloaded uint64) simReport {
	g.t.Helper()
	if err := g.p.wait(timeout); err != nil {
		g.t.Errorf("%s ended with %v:\n%s", g.name, err, tail(g.p.logText(), 60))
	}
	return g.check(offloaded)
}

// check reads the statistics of a program that has ended: no TCP socket was
// left to the kernel, and nothing is left on the DPU.
func (g *program) check(offloaded uint64) simReport {
	g.t.Helper()
	r := g.simReport(g.name + ".json")
	g.t.Logf("%s: %d sockets offloaded, left to the kernel %v, %d bytes sent, %d received",
		g.name, r.SocketsOffloaded, r.SocketsKernel, r.BytesTx, r.BytesRx)
	if r.SocketsOffloaded < offloaded {
		g.t.Errorf("%d sockets were offloaded, want %d at least", r.SocketsOffloaded, offloaded)
	}
	for reason, n := range r.SocketsKernel {
		if n > 0 && reason != "udp" {
			g.t.Errorf("%d sockets were left to the kernel: %s", n, reason)
		}
	}
	if s := r.DPU.Sockets; s.Open != 0 || r.DPU.Sessions.Open != 0 || r.DPU.Sessions.Violators != 0 {
		g.t.Errorf("the DPU is left with %d sockets and %d sessions, and ended %d for breaking the protocol",
			s.Open, r.DPU.Sessions.Open, r.DPU.Sessions.Violators)
	}
	return r
}

// publish maps a loopback port of the lab to the same port of the DPU.
func publish(port int) []string {
	return []string{"--publish", fmt.Sprintf("127.0.0.1:%d=%s:%d", port, servedAddr, port)}
}

func published80() []string { return []string{"--publish", published + "=" + servedAddr + ":80"} }

// debian is the path of a program that one test needs; scripts/deps.sh brings
// it.
func debian(t testing.TB, pattern string) string {
	t.Helper()
	if !strings.HasPrefix(pattern, "/") {
		path, err := exec.LookPath(pattern)
		if err != nil {
			t.Fatalf("%v; run scripts/deps.sh test", err)
		}
		return path
	}
	found, _ := filepath.Glob(pattern)
	if len(found) == 0 {
		t.Fatalf("there is no %s; run scripts/deps.sh test", pattern)
	}
	return found[len(found)-1]
}

// forUser makes the lab's directory and the built programs reachable by a user
// without rights: the tree may be where nobody else can read.
func (l *lab) forUser(uid int) {
	l.t.Helper()
	for _, name := range []string{"pno", "libpno.so"} {
		if out, err := exec.Command("install", "-m", "755", binary(l.t, name), l.path(name)).CombinedOutput(); err != nil {
			l.t.Fatalf("copy %s: %v %s", name, err, out)
		}
	}
	if err := os.Chown(l.dir, uid, uid); err != nil {
		l.t.Fatal(err)
	}
}

// simAs is sim for a user without rights, with the copies of forUser.
func (l *lab) programAs(uid int, name string, flags []string, argv ...string) *program {
	l.t.Helper()
	args := append([]string{l.path("pno"), "sim", "--stats", l.path(name + ".json")}, flags...)
	p := spawn(l.t, l.dir, name, l.host, append(append(args, "--"), argv...), spawnOptions{uid: uid})
	return &program{lab: l, p: p, name: name}
}

// sh runs a shell script as the program of a simulation.
func sh(script string) []string { return []string{"/bin/sh", "-ec", script} }

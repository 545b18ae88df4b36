// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestHotPathSystemCalls counts what a busy worker asks of the kernel: nothing
// for a request, and wake-ups and doorbells shared by many.
func TestHotPathSystemCalls(t *testing.T) {
	l := newLab(t)
	l.needOffload()
	c := nginxConf{Workers: 1, Server: `location /hot { return 200 "hot"; }`}
	l.nginx(c)
	worker := l.onlyChild(l.path(c.withDefaults().Name + ".pid"))

	var out bytes.Buffer
	trace := exec.Command("strace", "-f", "-c", "-U", "calls,name", "-p", strconv.Itoa(worker))
	trace.Stderr = &out
	if err := trace.Start(); err != nil {
		t.Fatal(err)
	}
	waitTraced(t, worker)
	said := l.mustClientRun(20*time.Second, "wrk", "-t1", "-c32", "-d2s", "http://"+servedAddr+"/hot")
	_ = trace.Process.Signal(syscall.SIGINT)
	_ = trace.Wait() // it ends by the signal

	m := regexp.MustCompile(`(\d+) requests in`).FindStringSubmatch(said)
	if m == nil {
		t.Fatalf("wrk said:\n%s", said)
	}
	requests, _ := strconv.Atoi(m[1])
	calls := make(map[string]int)
	total := 0
	for line := range strings.Lines(out.String()) {
		f := strings.Fields(line)
		if len(f) != 2 || f[1] == "total" {
			continue
		}
		if n, err := strconv.Atoi(f[0]); err == nil {
			calls[f[1]] = n
			total += n
		}
	}
	t.Logf("%d requests, %d system calls: %v", requests, total, calls)
	if requests < 1000 || total == 0 {
		t.Fatalf("nothing to judge by; strace said:\n%s", out.String())
	}
	if total > requests/2 {
		t.Errorf("%.2f system calls a request at 32 connections, want less than 0.5", float64(total)/float64(requests))
	}
	for name, n := range calls {
		switch name {
		case "recvfrom", "recvmsg", "readv", "sendto", "sendmsg", "writev", "sendfile", "accept4", "getsockopt", "getpeername":
			if n > requests/100 {
				t.Errorf("%d calls of %s: the kernel serves these sockets", n, name)
			}
		}
	}
}

// onlyChild is the one child of the process whose pid is in a file.
func (l *lab) onlyChild(pidFile string) int {
	l.t.Helper()
	b, err := os.ReadFile(pidFile)
	if err != nil {
		l.t.Fatal(err)
	}
	pid := strings.TrimSpace(string(b))
	b, err = os.ReadFile(fmt.Sprintf("/proc/%s/task/%s/children", pid, pid))
	if err != nil {
		l.t.Fatal(err)
	}
	child, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		l.t.Fatalf("children of %s: %q", pid, b)
	}
	return child
}

// waitTraced waits until a process has a tracer.
func waitTraced(t *testing.T, pid int) {
	t.Helper()
	if !poll(30*time.Second, func() bool {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		return bytes.Contains(b, []byte("TracerPid:")) && !bytes.Contains(b, []byte("TracerPid:\t0\n"))
	}) {
		t.Fatal("strace has not attached")
	}
}

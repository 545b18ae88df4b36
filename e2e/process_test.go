// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"pno/internal/netns"
)

// proc is a program that the lab started, with everything it wrote. It and its
// children are one process group, which ends with the test at the latest.
type proc struct {
	t      testing.TB
	name   string
	cmd    *exec.Cmd
	log    string
	stdin  io.WriteCloser // with spawnOptions.pipe
	stdout io.ReadCloser
	done   chan struct{} // closed when it has ended, after err is set
	err    error
	ending bool   // its end is expected from now on
	expect string // alarming words in its log that the test has caused itself
}

type spawnOptions struct {
	env  []string
	pipe bool // stdin and stdout are pipes to us; the log has stderr only
	dies bool // it may end by itself
	uid  int  // to run as, if not root
}

// spawn starts argv in a namespace, or, with nil, in that of the test. When the test fails the end of its log is
// shown.
func spawn(t testing.TB, dir, name string, ns *netns.NS, argv []string, o spawnOptions) *proc {
	t.Helper()
	p := &proc{t: t, name: name, done: make(chan struct{}), ending: o.dies}
	f, err := os.OpenFile(filepath.Join(dir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	p.log = f.Name()
	p.cmd = exec.Command(argv[0], argv[1:]...)
	p.cmd.Dir = dir
	p.cmd.Env = append(os.Environ(), o.env...)
	p.cmd.Stdout, p.cmd.Stderr = f, f
	if o.pipe {
		p.cmd.Stdout = nil
		p.stdin, _ = p.cmd.StdinPipe()
		p.stdout, _ = p.cmd.StdoutPipe()
	}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if o.uid != 0 {
		p.cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(o.uid), Gid: uint32(o.uid)}
	}
	if ns != nil {
		err = ns.Start(p.cmd)
	} else {
		err = p.cmd.Start()
	}
	f.Close()
	if err != nil {
		t.Fatalf("start %s: %v", strings.Join(argv, " "), err)
	}
	t.Cleanup(p.cleanup)
	go func() {
		if o.pipe {
			// Wait would close the pipe before its reader is through.
			st, err := p.cmd.Process.Wait()
			if err == nil && !st.Success() {
				err = &exec.ExitError{ProcessState: st}
			}
			p.err = err
		} else {
			p.err = p.cmd.Wait()
		}
		close(p.done)
	}()
	return p
}

func (p *proc) pid() int { return p.cmd.Process.Pid }

func (p *proc) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// cleanup ends the process group and shows the log of a failed test.
func (p *proc) cleanup() {
	if !p.ending && p.ended() {
		p.t.Errorf("%s ended by itself: %v", p.name, p.err)
	}
	p.killGroup()
	if p.stdout != nil {
		p.stdout.Close()
	}
	if p.t.Failed() {
		p.t.Logf("--- %s (pid %d, %s):\n%s", p.name, p.pid(), p.log, tail(p.logText(), 60))
	}
}

func (p *proc) killGroup() {
	p.ending = true
	_ = syscall.Kill(-p.pid(), syscall.SIGKILL)
	select {
	case <-p.done:
	case <-time.After(30 * time.Second):
		p.t.Errorf("%s (pid %d) does not die", p.name, p.pid())
		return
	}
	// Children that outlive their parent are collected by the supervisor.
	if !poll(30*time.Second, func() bool { return syscall.Kill(-p.pid(), 0) == syscall.ESRCH }) {
		p.t.Errorf("children of %s (process group %d) do not die", p.name, p.pid())
	}
}

func (p *proc) signal(sig syscall.Signal) {
	p.t.Helper()
	if err := syscall.Kill(p.pid(), sig); err != nil {
		p.t.Fatalf("send %v to %s: %v", sig, p.name, err)
	}
}

// kill9 ends the process and its children as a crash would.
func (p *proc) kill9() {
	p.t.Helper()
	p.killGroup()
}

// wait waits for the end of the process and returns how it ended.
func (p *proc) wait(timeout time.Duration) error {
	p.t.Helper()
	p.ending = true
	select {
	case <-p.done:
		return p.err
	case <-time.After(timeout):
		p.t.Fatalf("%s (pid %d) has not ended after %v\n%s", p.name, p.pid(), timeout, stacks(p.pid()))
		return nil
	}
}

// stop sends sig and expects exit status 0 in time.
func (p *proc) stop(sig syscall.Signal, timeout time.Duration) {
	p.t.Helper()
	if p.ended() {
		return
	}
	p.ending = true
	p.signal(sig)
	if err := p.wait(timeout); err != nil {
		p.t.Errorf("%s did not end well after %v: %v", p.name, sig, err)
	}
}

func (p *proc) logText() string {
	content, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(content)
}

// kill sends a signal to a process that is not our child.
func kill(t testing.TB, pid int, sig syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(pid, sig); err != nil {
		t.Fatalf("send %v to process %d: %v", sig, pid, err)
	}
}

func alive(pid int) bool {
	_, ok := processTable()[pid]
	return ok
}

// endDaemon ends a process that went to the background, with its children.
func (l *lab) endDaemon(pid int) {
	if pid <= 1 || !alive(pid) {
		return
	}
	for child := range descendants(pid) {
		_ = syscall.Kill(child, syscall.SIGKILL)
	}
	_ = syscall.Kill(pid, syscall.SIGKILL)
	if !poll(30*time.Second, func() bool { return !alive(pid) }) {
		l.t.Errorf("process %d does not die", pid)
	}
}

// exitCode of an error from wait: 0 for nil, -1 for a signal.
func exitCode(err error) int {
	var ee *exec.ExitError
	if errors.As(err, &ee) {
		return ee.ExitCode()
	}
	if err != nil {
		return -1
	}
	return 0
}

// family is the process and everything below it.
func (p *proc) family() []int {
	pids := []int{p.pid()}
	for pid := range descendants(p.pid()) {
		pids = append(pids, pid)
	}
	return pids
}

// usage is what a process holds.
type usage struct {
	fds int
	rss int64 // bytes
}

func (u usage) String() string { return fmt.Sprintf("%d fds, %.1f MiB", u.fds, float64(u.rss)/(1<<20)) }

// usage sums over the process and its children.
func (p *proc) usage() (u usage) {
	p.t.Helper()
	for _, pid := range p.family() {
		fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		if err != nil {
			continue // ended meanwhile
		}
		u.fds += len(fds)
		u.rss += statusKiB(pid, "VmRSS") << 10
	}
	return u
}

func statusKiB(pid int, key string) int64 {
	content, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(content)) {
		if rest, ok := strings.CutPrefix(line, key+":"); ok {
			n, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return n
		}
	}
	return 0
}

// stacks says where in the kernel each thread of a process sits: the first
// thing to know about one that hangs.
func stacks(pid int) string {
	var b strings.Builder
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	for _, task := range tasks {
		wchan, _ := os.ReadFile(task + "/wchan")
		call, _ := os.ReadFile(task + "/syscall")
		fmt.Fprintf(&b, "thread %s: %s, system call %s", filepath.Base(task), wchan, call)
	}
	return b.String()
}

// poll asks until cond holds or time is up.
func poll(timeout time.Duration, cond func() bool) bool {
	for deadline := time.Now().Add(timeout); ; {
		if cond() {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// tail returns the last n lines.
func tail(s string, n int) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	if len(lines) > n {
		lines = append([]string{fmt.Sprintf("… %d lines", len(lines)-n)}, lines[len(lines)-n:]...)
	}
	return strings.Join(lines, "\n")
}

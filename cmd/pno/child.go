// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Exit codes of a launcher, as env(1), nohup(1) and timeout(1) have them.
const (
	exitOwn       = 125 // pno itself failed
	exitCannotRun = 126 // the program exists but does not run
	exitNotFound  = 127
)

// statusError ends pno with a code; an empty text prints nothing.
type statusError struct {
	code int
	err  error
}

func (e *statusError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}
func (e *statusError) Unwrap() error { return e.err }

// forwarded are the signals that pno passes on to the program.
var forwarded = []os.Signal{
	syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGQUIT,
}

// grace is how long what the program left behind has to end after SIGTERM.
const grace = 3 * time.Second

// child is the program under a simulation. Its exit ends the simulation; a
// program that puts itself in the background must be told not to. What it
// leaves behind becomes a child of pno (as a sub-reaper), and is ended.
type child struct {
	argv    []string
	path    string
	pid     int
	signals chan os.Signal
	ended   chan struct{}
}

// newChild finds the program. From here on signals are kept for it.
func newChild(argv []string) (*child, error) {
	path, err := exec.LookPath(argv[0])
	if err != nil {
		code := exitNotFound
		if errors.Is(err, fs.ErrPermission) {
			code = exitCannotRun
		}
		return nil, &statusError{code, fmt.Errorf("run %s: %w", argv[0], errors.Unwrap(err))}
	}
	c := &child{argv: argv, path: path, signals: make(chan os.Signal, 16), ended: make(chan struct{})}
	signal.Notify(c.signals, forwarded...)
	return c, nil
}

// start must be called from the main thread: the program gets SIGTERM when
// that thread ends, which it does only with the process.
func (c *child) start(env []string) error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return &statusError{exitOwn, fmt.Errorf("adopt orphans: %w", err)}
	}
	p, err := os.StartProcess(c.path, c.argv, &os.ProcAttr{
		Env:   env,
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
		Sys:   &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM},
	})
	if err != nil {
		return &statusError{exitCannotRun, fmt.Errorf("run %s: %w", c.argv[0], err)}
	}
	c.pid = p.Pid
	_ = p.Release() // wait reaps it among the others
	go c.forward()
	return nil
}

// mergeEnv returns base with the variables of more, which win. A name that
// occurs twice would be found as the first by getenv, as the last by a shell.
func mergeEnv(base, more []string) []string {
	set := make(map[string]bool)
	for _, e := range more {
		name, _, _ := strings.Cut(e, "=")
		set[name] = true
	}
	out := slices.Clone(more)
	for _, e := range base {
		if name, _, _ := strings.Cut(e, "="); !set[name] {
			out = append(out, e)
		}
	}
	return out
}

// forward passes signals on. Those that the terminal sends reach the program
// without our help, and some programs take a second SIGINT for impatience.
func (c *child) forward() {
	for {
		select {
		case s := <-c.signals:
			if (s == syscall.SIGINT || s == syscall.SIGQUIT) && inForeground() {
				continue
			}
			_ = unix.Kill(c.pid, s.(syscall.Signal)) // it may be gone: then wait is about to return
		case <-c.ended:
			return
		}
	}
}

// inForeground tells whether a terminal's keys send signals to this process.
func inForeground() bool {
	group, err := unix.IoctlGetInt(int(os.Stdin.Fd()), unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

// wait reaps until the program has ended and returns its status in the way of
// a shell.
func (c *child) wait() (int, error) {
	defer func() {
		signal.Stop(c.signals)
		close(c.ended)
	}()
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return 0, fmt.Errorf("wait for the program: %w", err)
		case pid != c.pid:
			continue
		case ws.Signaled():
			return 128 + int(ws.Signal()), nil
		default:
			return ws.ExitStatus(), nil
		}
	}
}

// endOrphans ends every process that the program left behind, by SIGTERM and
// then by SIGKILL, and returns how many it met.
func endOrphans() int {
	met := make(map[int]bool)
	begin := time.Now()
	for {
		for {
			pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
			if errors.Is(err, unix.ECHILD) {
				return len(met)
			}
			if pid <= 0 && !errors.Is(err, unix.EINTR) {
				break
			}
		}
		sig := unix.SIGTERM
		if time.Since(begin) > grace {
			sig = unix.SIGKILL
		}
		for _, pid := range children() {
			if !met[pid] || sig == unix.SIGKILL {
				met[pid] = true
				_ = unix.Kill(pid, sig)
			}
		}
		if time.Since(begin) > 2*grace {
			return len(met) // in an uninterruptible sleep: init will have it
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// children lists the processes whose parent this one is.
func children() []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var out []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue
		}
		// pid (name) state parent …, where the name may hold anything.
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		if len(fields) > 1 && fields[1] == strconv.Itoa(os.Getpid()) {
			out = append(out, pid)
		}
	}
	return out
}

// SPDX-License-Identifier: Apache-2.0

package suites

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"pno/internal/netns"
)

// python is Debian's: the suites are those of its version.
const python = "/usr/bin/python3.11"

// caseLimit is what one case may take, in seconds, before its process is ended.
const caseLimit = 60

// mostLost is how often a module is taken up again behind a case that did not
// end.
const mostLost = 8

// side is where sockets are: in the kernel or on the DPU.
type side string

const (
	native    side = "native"
	offloaded side = "offloaded"
)

// outcome is how a case ended: ok, fail, skip, or lost when it did not.
type outcome struct {
	Event  string
	Detail string
}

// sideResult is one module on one side.
type sideResult struct {
	cases map[string]outcome
	order []string
	stats statistics // of all its processes
	took  time.Duration
}

// statistics is what we read of `pno sim --stats`.
type statistics struct {
	Offloaded uint64            `json:"sockets_offloaded"`
	Kernel    map[string]uint64 `json:"sockets_kernel"`
	BytesTx   uint64            `json:"bytes_tx"`
	BytesRx   uint64            `json:"bytes_rx"`
}

func (s *statistics) add(o statistics) {
	s.Offloaded += o.Offloaded
	s.BytesTx += o.BytesTx
	s.BytesRx += o.BytesRx
	if s.Kernel == nil {
		s.Kernel = map[string]uint64{}
	}
	for reason, n := range o.Kernel {
		s.Kernel[reason] += n
	}
}

// run runs a module, or only the named cases of it, to its end.
func run(t *testing.T, m module, on side, only []string) *sideResult {
	t.Helper()
	r := &sideResult{cases: map[string]outcome{}}
	begin := time.Now()
	defer func() { r.took = time.Since(begin) }()
	if m.kind == vtc {
		runVarnishtest(t, m, on, only, r)
		return r
	}
	for range mostLost {
		if complete := runPython(t, m, on, only, r); complete {
			return r
		}
	}
	t.Errorf("%s, %s: given up after %d cases that did not end", m.name, on, mostLost)
	return r
}

// runPython is one process of a module that writes a journal; it leaves out the cases that r
// has. It returns false if a case did not end: there may be more behind it.
func runPython(t *testing.T, m module, on side, only []string, r *sideResult) (complete bool) {
	t.Helper()
	dir := workDir(t)
	journal, done := filepath.Join(dir, "journal"), filepath.Join(dir, "done")
	name := "cases.py"
	if m.kind == built {
		name = "each.py"
	}
	script, err := filepath.Abs(filepath.Join("testdata", name))
	if err == nil {
		err = os.WriteFile(done, []byte(strings.Join(r.order, "\n")), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	argv := []string{python, "-u", script, "--out", journal, "--done", done, "--timeout", fmt.Sprint(caseLimit)}
	switch m.kind {
	case pytest:
		argv = append(argv, "--pytest")
	case built:
		list := filepath.Join(dir, "list")
		writeList(t, list, m.list(t))
		argv = append(argv, "--list", list, "--jobs", fmt.Sprint(m.jobs))
	}
	for _, g := range m.without {
		argv = append(argv, "--without", g)
	}
	if only == nil {
		only = m.match
	}
	for _, g := range only {
		argv = append(argv, "--match", g)
	}
	if m.kind != built {
		argv = append(argv, m.name)
	}
	log, _ := command(t, dir, on, m.limit, argv, &r.stats)
	before := len(r.order)
	complete = r.read(t, journal)
	if !complete && len(r.order) == before {
		t.Fatalf("%s, %s: no case was run:\n%s", m.name, on, log)
	}
	return complete
}

// read takes what a journal of cases.py says.
func (r *sideResult) read(t *testing.T, journal string) (complete bool) {
	t.Helper()
	f, err := os.Open(journal)
	if err != nil {
		return false
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		var line struct{ Case, Event, Detail string }
		if err := json.Unmarshal(s.Bytes(), &line); err != nil {
			continue // the end of a process that was killed
		}
		switch line.Event {
		case "complete":
			complete = true
		case "begin":
			r.note(line.Case, outcome{Event: "lost"})
		default:
			r.note(line.Case, outcome{line.Event, line.Detail})
		}
	}
	return complete
}

func (r *sideResult) note(name string, o outcome) {
	if _, ok := r.cases[name]; !ok {
		r.order = append(r.order, name)
	}
	r.cases[name] = o
}

// command runs argv to its end in a namespace of its own, under the shim or
// not, and returns what it wrote.
func command(t *testing.T, dir string, on side, limit time.Duration, argv []string, stats *statistics) (string, error) {
	t.Helper()
	numbers := filepath.Join(dir, "stats.json")
	if on == offloaded {
		argv = append([]string{binary(t, "pno"), "sim", "--offload-loopback", "--stats", numbers, "--"}, argv...)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	ns := netns.New(t, "suite")
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = dir
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	err = ns.Start(cmd)
	if err == nil {
		err = cmd.Wait()
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
	if on == offloaded {
		var one statistics
		content, rerr := os.ReadFile(numbers)
		if rerr == nil {
			rerr = json.Unmarshal(content, &one)
		}
		if rerr != nil {
			t.Errorf("statistics of %s: %v", strings.Join(argv, " "), rerr)
		}
		stats.add(one)
	}
	text, _ := os.ReadFile(log.Name())
	return tail(string(text), 4000), err
}

// runVarnishtest runs the test cases of one directory, each a process.
func runVarnishtest(t *testing.T, m module, on side, only []string, r *sideResult) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", m.name, "*.vtc"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no test cases in testdata/%s: %v", m.name, err)
	}
	for _, file := range files {
		name := filepath.Base(file)
		if len(only) > 0 && !slices.Contains(only, name) || len(only) == 0 && len(m.match) > 0 && !slices.Contains(m.match, name) {
			continue
		}
		path, err := filepath.Abs(file)
		if err != nil {
			t.Fatal(err)
		}
		var stats statistics
		log, err := command(t, workDir(t), on, time.Minute, []string{"varnishtest", "-t", "40", path}, &stats)
		var status *exec.ExitError
		switch {
		case err == nil && on == offloaded && stats.Offloaded == 0:
			r.note(name, outcome{"fail", "no socket was offloaded"})
		case err == nil:
			r.note(name, outcome{Event: "ok"})
		case errors.As(err, &status) && status.ExitCode() == 77:
			r.note(name, outcome{"skip", log})
		default:
			r.note(name, outcome{"fail", log})
		}
		r.stats.add(stats)
	}
}

// workDir is short: tests make Unix sockets below it.
func workDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "pno-suite-")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// binary is the path of a built program: in bin/, or in PNO_E2E_BIN.
func binary(t *testing.T, name string) string {
	t.Helper()
	dir := os.Getenv("PNO_E2E_BIN")
	if dir == "" {
		dir = filepath.Join("..", "..", "bin")
	}
	path, err := filepath.Abs(filepath.Join(dir, name))
	if err == nil {
		_, err = os.Stat(path)
	}
	if err != nil {
		t.Fatalf("%v; run make build first", err)
	}
	return path
}

func tail(s string, n int) string {
	if len(s) > n {
		return "…" + s[len(s)-n:]
	}
	return s
}

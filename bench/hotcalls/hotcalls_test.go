// SPDX-License-Identifier: Apache-2.0

// Package hotcalls holds what the shim's hot calls cost, in instructions.
//
// testdata/hot.c runs under callgrind with the real libpno.so and hostd; the DPU is the
// synthetic peer of pno/bench/peer, moved on by the program itself, so that
// every run does the same. What is counted is the library's own code: libc
// chooses its copies by processor. testdata/table.txt has the counts for one compiler;
// more than 5 % off, either way, fails. After a change that is worth it:
//
//	go test ./bench/hotcalls -update
package hotcalls

import (
	"bufio"
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"pno/bench/peer"
	"pno/dpu/control"
	"pno/host"
	"pno/sim/topology"
)

var (
	update = flag.Bool("update", false, "write the counts to testdata/table.txt")
	show   = flag.String("profile", "", "print the functions that a call spends its instructions in")
)

const (
	conns     = 16 // as in testdata/hot.c
	tolerance = 0.05
	timeLimit = 2 * time.Minute // it takes seconds
	table     = "testdata/table.txt"
)

// cost is what one kind of call took.
type cost struct {
	name     string
	each     float64            // instructions of libpno.so a call
	function map[string]float64 // the same, for each function
}

func TestInstructions(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("the table is for amd64")
	}
	lib, err := filepath.Abs("../../bin/libpno.so")
	if err != nil {
		t.Fatal(err)
	}
	compiler, err := compiledBy(lib)
	if err != nil {
		t.Fatalf("%v; run make build first", err)
	}
	costs := measure(t, lib)
	if *update {
		write(t, compiler, costs)
		return
	}
	of, want := read(t)
	if of != compiler {
		t.Skipf("the table is for %s, libpno.so was built by %s", of, compiler)
	}
	for _, c := range costs {
		w, ok := want[c.name]
		delete(want, c.name)
		switch {
		case !ok:
			t.Errorf("%s: %.1f instructions, and no line in %s", c.name, c.each, table)
		case c.each > w*(1+tolerance) || c.each < w*(1-tolerance):
			t.Errorf("%s: %.1f instructions a call, %+.1f %% from the table's %.1f: mend it, or argue for it and run go test ./bench/hotcalls -update",
				c.name, c.each, 100*(c.each/w-1), w)
		default:
			t.Logf("%-30s %7.1f, table %7.1f", c.name, c.each, w)
		}
	}
	for name := range want {
		t.Errorf("%s: in %s, not measured", name, table)
	}
}

// compiledBy is the compiler that made a library, to its major version.
func compiledBy(path string) (string, error) {
	f, err := elf.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	s := f.Section(".comment")
	if s == nil {
		return "", fmt.Errorf("%s does not say who compiled it", path)
	}
	b, err := s.Data()
	if err != nil {
		return "", err
	}
	first, _, _ := bytes.Cut(b, []byte{0})
	m := regexp.MustCompile(`^(GCC|.*clang).* (\d+)\.\d+\.\d+`).FindSubmatch(first)
	if m == nil {
		return string(first), nil
	}
	return string(m[1]) + " " + string(m[2]), nil
}

// measure runs the program and reads what callgrind has written.
func measure(t *testing.T, lib string) []cost {
	t.Helper()
	dir := t.TempDir()
	program := filepath.Join(dir, "hot")
	if out, err := exec.Command("gcc", "-std=gnu11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Werror", "-o", program, "testdata/hot.c",
		lib, "-Wl,-rpath,"+filepath.Dir(lib)).CombinedOutput(); err != nil {
		t.Fatalf("compile hot.c: %v\n%s", err, out)
	}
	p := peer.New([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), conns)
	serve(t, dir, p)
	run(t, dir, program, p)
	files, err := filepath.Glob(filepath.Join(dir, "count.*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("callgrind wrote nothing: %v", err)
	}
	slices.SortFunc(files, func(a, b string) int { return number(a) - number(b) })
	var costs []cost
	for _, name := range files {
		c, ok, err := parse(name, filepath.Base(lib))
		if err != nil {
			t.Fatal(err)
		}
		if ok {
			costs = append(costs, c)
		}
	}
	if *show != "" {
		profile(t, costs)
	}
	return costs
}

// number is a dump's.
func number(name string) int {
	n, _ := strconv.Atoi(strings.TrimPrefix(filepath.Ext(name), "."))
	return n
}

// serve brings up the control link to the peer, and hostd.
func serve(t *testing.T, dir string, p *peer.Peer) {
	t.Helper()
	quiet := slog.New(slog.DiscardHandler)
	ctx, cancel := context.WithCancel(context.Background())
	link := control.New(filepath.Join(dir, "dpud"), p, quiet)
	l, err := link.Listen()
	if err != nil {
		t.Fatal(err)
	}
	h, err := host.New(host.Config{Listen: filepath.Join(dir, "hostd"), DPU: filepath.Join(dir, "dpud"),
		Policy: topology.Policy(), Log: quiet, State: filepath.Join(dir, "state")})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 2)
	go func() { ended <- link.Serve(ctx, l) }()
	go func() { ended <- h.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		for range 2 {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	})
	<-h.Ready()
	if !h.WaitDPU(ctx, 10*time.Second) {
		t.Fatal("hostd does not reach the peer")
	}
}

// run moves the peer on by itself until the program asks for the first turn,
// and from then on when it asks.
func run(t *testing.T, dir, program string, p *peer.Peer) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "valgrind", "--tool=callgrind", "--collect-atstart=no", "--compress-strings=no",
		"--compress-pos=no", "--callgrind-out-file="+filepath.Join(dir, "count"), program)
	cmd.Env = append(os.Environ(), "PNO_HOSTD="+filepath.Join(dir, "hostd"))
	var diag bytes.Buffer
	cmd.Stderr = &diag
	asks, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	granted, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v: run scripts/deps.sh test", err)
	}
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		for b := make([]byte, 1); ; {
			if _, err := io.ReadFull(asks, b); err != nil {
				return
			}
			asked <- struct{}{}
		}
	}()
	err = turns(p, asked, granted)
	if err != nil {
		cancel()
	}
	for range asked { // ends with the program
	}
	if err = errors.Join(err, cmd.Wait()); err != nil {
		t.Fatalf("%v\n%s", err, diag.String())
	}
}

func turns(p *peer.Peer, asked <-chan struct{}, granted io.Writer) error {
	early := time.NewTicker(time.Millisecond)
	defer early.Stop()
	for {
		select {
		case <-early.C:
			if err := p.Turn(); err != nil {
				return err
			}
		case _, ok := <-asked:
			if !ok {
				return nil
			}
			early.Stop()
			if err := p.Turn(); err != nil {
				return err
			}
			if _, err := granted.Write([]byte{0}); err != nil {
				return fmt.Errorf("grant a turn: %w", err)
			}
		}
	}
}

// parse reads one dump: the calls by its name, and the own costs of what lies
// in the library. A line after "calls=" is the cost of what was called.
func parse(path, library string) (c cost, ok bool, err error) {
	f, err := os.Open(path)
	if err != nil {
		return c, false, err
	}
	defer f.Close()
	c.function = make(map[string]float64)
	var calls, total float64
	var inside, inclusive bool
	var function string
	for lines := bufio.NewScanner(f); lines.Scan(); {
		line := lines.Text()
		key, value, _ := strings.Cut(line, "=")
		switch {
		case strings.HasPrefix(line, "desc: Trigger: Client Request: "):
			name, n, _ := strings.Cut(strings.TrimPrefix(line, "desc: Trigger: Client Request: "), "*")
			if calls, err = strconv.ParseFloat(n, 64); err != nil {
				return c, false, fmt.Errorf("%s: %q: %w", path, line, err)
			}
			c.name = name
		case key == "ob":
			inside = filepath.Base(value) == library
		case key == "fn":
			function = value
		case key == "calls":
			inclusive = true
		case line != "" && line[0] >= '0' && line[0] <= '9':
			if fields := strings.Fields(line); inside && !inclusive && len(fields) == 2 {
				n, err := strconv.ParseFloat(fields[1], 64)
				if err != nil {
					return c, false, fmt.Errorf("%s: %q: %w", path, line, err)
				}
				total += n
				c.function[function] += n
			}
			inclusive = false
		}
	}
	if calls == 0 { // the dump at the end
		return c, false, nil
	}
	if total == 0 {
		return c, false, fmt.Errorf("%s: %s: nothing was counted in %s", path, c.name, library)
	}
	c.each = total / calls
	for name := range c.function {
		c.function[name] /= calls
	}
	return c, true, nil
}

func TestParse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "count.1")
	if err := os.WriteFile(path, []byte(`version: 1
desc: Trigger: Client Request: send 3 B*2
events: Ir
ob=/lib/libc.so.6
fn=memcpy
9 1000
ob=/x/libpno.so
fn=send
10 6
cob=/lib/libc.so.6
cfn=memcpy
calls=2 9
11 1000
12 4
fn=push
20 10
`), 0o644); err != nil {
		t.Fatal(err)
	}
	c, ok, err := parse(path, "libpno.so")
	if err != nil || !ok || c.name != "send 3 B" || c.each != 10 || c.function["send"] != 5 || c.function["push"] != 5 {
		t.Errorf("%+v, %v, %v", c, ok, err)
	}
	if _, _, err := parse(path, "libother.so"); err == nil {
		t.Error("a library that is not there was counted")
	}
}

func profile(t *testing.T, costs []cost) {
	for _, c := range costs {
		if *show != "all" && c.name != *show {
			continue
		}
		var lines []string
		for name, n := range c.function {
			lines = append(lines, fmt.Sprintf("%8.1f %s", n, name))
		}
		slices.Sort(lines)
		slices.Reverse(lines)
		t.Logf("%s: %.1f\n%s", c.name, c.each, strings.Join(lines, "\n"))
	}
}

func write(t *testing.T, compiler string, costs []cost) {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "# instructions of libpno.so a call; rewritten by: go test ./bench/hotcalls -update\n%s\n", compiler)
	for _, c := range costs {
		fmt.Fprintf(&b, "%-30s %6.1f\n", c.name, c.each)
	}
	if err := os.WriteFile(table, []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}

// read returns the compiler that the table is for, and the table.
func read(t *testing.T) (string, map[string]float64) {
	t.Helper()
	b, err := os.ReadFile(table)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	if len(lines) < 3 {
		t.Fatalf("%s: %d lines", table, len(lines))
	}
	want := make(map[string]float64)
	for _, line := range lines[2:] {
		cut := strings.LastIndexByte(line, ' ')
		n, err := strconv.ParseFloat(line[cut+1:], 64)
		if err != nil {
			t.Fatalf("%s: %q: %v", table, line, err)
		}
		want[strings.TrimSpace(line[:cut])] = n
	}
	return lines[1], want
}

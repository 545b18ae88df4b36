// SPDX-License-Identifier: Apache-2.0

// Package conformance holds that no program can tell an offloaded socket from
// one of the kernel's.
//
// Each file in topic/ is a small C program that makes socket calls and writes
// a transcript of what came of them (src/conf.h). It runs once on kernel
// sockets, and then in several flavours under `pno sim --offload-loopback`;
// every transcript must be the kernel's, line by line. What is known to
// differ, and why, stands in known_test.go and nowhere else. The statistics of
// each simulation must show that the sockets were the DPU's.
//
// A new topic needs no more than its file. To look at one by hand:
//
//	make build && make -C shim/conformance OUT=$PWD/bin/conformance
//	bin/conformance/plain/connect
//	bin/pno sim --offload-loopback -- bin/conformance/plain/connect
package conformance

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

const (
	// leastChecks is how many checks the topics have in all, at least.
	leastChecks = 400
	// timeLimit is for one program; none should need more than two seconds.
	timeLimit = 100 * time.Second
)

// flavours are the builds that run under the shim; plain is also the kernel's.
// The sanitized ones have the shim linked in, so it is not loaded as well.
var flavours = []flavour{
	{name: "plain"},
	{name: "fortified"},
	{name: "asan", linked: true, unless: "conf: not sanitized"},
	{name: "tsan", linked: true, only: "conf: threads"},
}

// flavour is one build of the topics; only and unless are what a topic's
// source must and must not say, as in the Makefile.
type flavour struct {
	name         string
	linked       bool
	only, unless string
}

func (f flavour) builds(source []byte) bool {
	return bytes.Contains(source, []byte(f.only)) && (f.unless == "" || !bytes.Contains(source, []byte(f.unless)))
}

func TestConformance(t *testing.T) {
	bin := binaries(t)
	sources, err := filepath.Glob("topic/*.c")
	if err != nil || len(sources) == 0 {
		t.Fatalf("no topics: %v", err)
	}
	var checks atomic.Int64
	used := make([]atomic.Bool, len(known))
	t.Run("topic", func(t *testing.T) {
		for _, source := range sources {
			topic := strings.TrimSuffix(filepath.Base(source), ".c")
			text, err := os.ReadFile(source)
			if err != nil {
				t.Fatal(err)
			}
			t.Run(topic, func(t *testing.T) {
				t.Parallel()
				want := onKernel(t, filepath.Join(bin, "conformance", "plain", topic))
				checks.Add(int64(count(want)))
				for _, f := range flavours {
					if !f.builds(text) {
						continue
					}
					t.Run(f.name, func(t *testing.T) {
						got, r := offloaded(t, bin, filepath.Join(bin, "conformance", f.name, topic), f.linked)
						if r.DPU.Traffic.BytesSpliced == 0 && bytes.Contains(text, []byte("conf: spliced")) {
							t.Errorf("no byte was spliced on the DPU: the transcript proves nothing")
						}
						compare(t, topic, want, got, used)
					})
				}
			})
		}
	})
	if testing.Verbose() {
		t.Logf("%d checks in %d topics", checks.Load(), len(sources))
	}
	if strings.Contains(flag.Lookup("test.run").Value.String(), "/") {
		return // some topics only
	}
	if n := checks.Load(); n < leastChecks {
		t.Errorf("%d checks, want %d or more", n, leastChecks)
	}
	for i := range known {
		if !used[i].Load() {
			t.Errorf("known_test.go: %s no longer gives %q: remove the entry", known[i].topic, known[i].offload)
		}
	}
}

// binaries builds the topics, and returns where they and pno are.
func binaries(t *testing.T) string {
	t.Helper()
	bin, err := filepath.Abs(filepath.Join("..", "..", "bin"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"pno", "libpno.so"} {
		if _, err := os.Stat(filepath.Join(bin, name)); err != nil {
			t.Fatalf("%v; run make build first", err)
		}
	}
	out, err := exec.Command("make", fmt.Sprintf("-j%d", runtime.NumCPU()), "OUT="+filepath.Join(bin, "conformance")).CombinedOutput()
	if err != nil {
		t.Fatalf("build the topics: %v\n%s", err, out)
	}
	return bin
}

// run runs a command to its end and returns its transcript.
func run(t *testing.T, argv ...string) ([]string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.WaitDelay = 5 * time.Second
	// pno ends what it started when it gets this.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	var out, diag bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &diag
	err := cmd.Run()
	if ctx.Err() != nil {
		err = fmt.Errorf("not done after %v", timeLimit)
	}
	if err != nil && diag.Len() > 0 {
		err = fmt.Errorf("%w\n%s", err, diag.String())
	}
	return strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n"), err
}

func onKernel(t *testing.T, program string) []string {
	t.Helper()
	lines, err := run(t, program)
	if err != nil {
		t.Fatalf("on kernel sockets: %v\n%s", err, strings.Join(lines, "\n"))
	}
	return lines
}

// simReport is what is read of pno sim --stats.
type simReport struct {
	SocketsOffloaded uint64            `json:"sockets_offloaded"`
	SocketsKernel    map[string]uint64 `json:"sockets_kernel"`
	DPU              struct {
		Traffic struct {
			BytesSpliced uint64 `json:"bytes_spliced"`
		} `json:"traffic"`
	} `json:"dpu"`
}

// offloaded runs a program in a simulation and holds that its sockets were the
// DPU's. How it ended is reported, but its transcript is compared anyway.
func offloaded(t *testing.T, bin, program string, linked bool) ([]string, simReport) {
	t.Helper()
	stats := filepath.Join(t.TempDir(), "stats.json")
	argv := []string{filepath.Join(bin, "pno"), "sim", "--offload-loopback", "--stats", stats, "--"}
	if linked {
		argv = append(argv, "env", "-u", "LD_PRELOAD")
	}
	lines, err := run(t, append(argv, program)...)
	if err != nil {
		t.Errorf("under the shim: %v", err)
	}
	var r simReport
	content, err := os.ReadFile(stats)
	if err == nil {
		err = json.Unmarshal(content, &r)
	}
	if err != nil {
		t.Fatalf("statistics of the simulation: %v\n%s", err, content)
	}
	if r.SocketsOffloaded == 0 {
		t.Errorf("no socket was offloaded: the transcript proves nothing")
	}
	for _, reason := range []string{"policy", "no_hostd", "fdrange"} {
		if n := r.SocketsKernel[reason]; n > 0 {
			t.Errorf("%d sockets were left to the kernel: %s", n, reason)
		}
	}
	return lines, r
}

// count returns the checks of a transcript: lines that are no section's name
// and no further fact about the check before.
func count(transcript []string) (n int) {
	for _, line := range transcript {
		if line != "" && !strings.HasPrefix(line, "== ") && !strings.HasPrefix(line, " ") {
			n++
		}
	}
	return n
}

// compare reports where two transcripts first differ, with what is around it.
func compare(t *testing.T, topic string, want, got []string, used []atomic.Bool) {
	t.Helper()
	section := ""
	for i := range max(len(want), len(got)) {
		w, g := line(want, i), line(got, i)
		if name, ok := strings.CutPrefix(w, "== "); ok {
			section = name
		}
		if w == g {
			continue
		}
		k := slices.IndexFunc(known, func(d difference) bool {
			return d.topic == topic && d.section == section && d.kernel == w && d.offload == g
		})
		if k >= 0 {
			used[k].Store(true)
			continue
		}
		var b strings.Builder
		for j := max(0, i-6); j < i; j++ {
			fmt.Fprintf(&b, "   %s\n", want[j])
		}
		for j := i; j < i+4; j++ {
			fmt.Fprintf(&b, "kernel:  %s\n", line(want, j))
		}
		for j := i; j < i+4; j++ {
			fmt.Fprintf(&b, "offload: %s\n", line(got, j))
		}
		t.Errorf("section %q differs in line %d:\n%s", section, i+1, b.String())
		return
	}
}

func line(lines []string, i int) string {
	if i >= len(lines) {
		return "(end of the transcript)"
	}
	return lines[i]
}

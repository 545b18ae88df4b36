// SPDX-License-Identifier: Apache-2.0

package difffuzz

import (
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var (
	forFlag  = flag.Duration("fuzz-for", 10*time.Second, "how long to play random programs")
	seedFlag = flag.Uint64("fuzz-seed", 1, "seed of the first program; each next has the next number")
	mostFlag = flag.Int("fuzz-programs", math.MaxInt, "how many to play at most")
	control  = flag.Bool("fuzz-control", false, "play the kernel against itself: whatever differs is the model's fault")
	children = flag.Bool("fuzz-children", false, "programs that fork, too")
	maxFlag  = flag.Int("fuzz-max", 10, "differences to find before giving up")
)

// calls a program, about.
const programCalls = 40

// lab is the two players, and the report of the simulation.
type lab struct {
	t *testing.T
	Pair
	stats string
}

func newLab(t *testing.T, flags ...string) *lab {
	t.Helper()
	pno, err := filepath.Abs("../../bin/pno")
	if err == nil {
		_, err = os.Stat(pno)
	}
	if err != nil {
		t.Fatalf("%v; run make build first", err)
	}
	player := filepath.Join(t.TempDir(), "player")
	sources, _ := filepath.Glob("player/*.c")
	cc := exec.Command("cc", append(append(strings.Fields("-std=gnu11 -O1 -g -D_GNU_SOURCE -Wall -Wextra -Werror -o"), player), append(sources, "-pthread")...)...)
	if out, err := cc.CombinedOutput(); err != nil {
		t.Fatalf("compile the player: %v\n%s", err, out)
	}
	l := &lab{t: t, stats: filepath.Join(t.TempDir(), "stats.json")}
	sim := append([]string{pno, "sim", "--offload-loopback", "--stats", l.stats}, flags...)
	l.Kernel = &Player{Name: "kernel", Argv: []string{player, "--private-network"}, Patience: 30 * time.Second}
	l.Shim = &Player{Name: "shim", Argv: append(sim, "--", player), Patience: 30 * time.Second}
	if *control {
		l.Shim.Argv = l.Kernel.Argv
	}
	t.Cleanup(l.Kernel.Kill)
	t.Cleanup(l.Shim.Kill)
	return l
}

// offloaded stops the simulation and returns how many sockets went through it.
func (l *lab) offloaded() (n uint64) {
	l.t.Helper()
	if err := l.Shim.Stop(); err != nil {
		l.t.Errorf("the simulation ended with %v\n%s", err, l.Shim.log.take())
	}
	if *control {
		return math.MaxUint64
	}
	var report struct {
		SocketsOffloaded uint64 `json:"sockets_offloaded"`
	}
	content, err := os.ReadFile(l.stats)
	if err == nil {
		err = json.Unmarshal(content, &report)
	}
	if err != nil {
		l.t.Fatalf("statistics of the simulation: %v", err)
	}
	return report.SocketsOffloaded
}

// TestPrograms plays random programs for a while.
func TestPrograms(t *testing.T) {
	l := newLab(t)
	played, found, flaky := 0, 0, 0
	seed := *seedFlag
	known := map[string]int{}
	for end := time.Now().Add(*forFlag); time.Now().Before(end) && found < *maxFlag && played < *mostFlag; seed++ {
		r, err := l.Play(Generate(seed, programCalls, *children))
		if err != nil {
			t.Fatal(err)
		}
		played++
		if !r.Differs() {
			continue
		}
		if known[r.Signature()] > 0 {
			known[r.Signature()]++
			continue
		}
		t.Logf("seed %d differs; once more", seed)
		again, sure, err := l.Confirm(r.Program)
		switch {
		case err != nil:
			t.Fatal(err)
		case !sure:
			flaky++
			t.Logf("seed %d differed, and then did not:\n%s%s", seed, r, l.Shim.log.take())
		default:
			found++
			known[again.Signature()]++
			l.report(seed, again)
		}
	}
	for signature, n := range known {
		t.Logf("%d times: %s", n, signature)
	}
	t.Logf("%d programs, seeds %d to %d: %d differ, %d differed once", played, *seedFlag, seed-1, found, flaky)
	if n := l.offloaded(); n == 0 {
		t.Error("no socket was offloaded")
	}
}

// report makes a program that differs small, and keeps it.
func (l *lab) report(seed uint64, r Result) {
	l.t.Helper()
	l.Kernel.SetAwaitLimit(200)
	l.Shim.SetAwaitLimit(200)
	patience := l.Shim.Patience
	l.Shim.Patience = 5 * time.Second // a call that hangs is played over and over
	small, err := l.Minimise(r)
	l.Kernel.SetAwaitLimit(AwaitLimit)
	l.Shim.SetAwaitLimit(AwaitLimit)
	l.Shim.Patience = patience
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Errorf("seed %d: kernel and shim differ\n%s", seed, small)
}

// TestCorpus plays what once differed.
func TestCorpus(t *testing.T) {
	l := newLab(t)
	files, _ := filepath.Glob("testdata/*.txt")
	if len(files) == 0 {
		t.Fatal("testdata has no programs")
	}
	for _, name := range files {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			prog, err := Parse(string(text))
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if legal, _ := prog.Legal(); legal.String() != prog.String() {
				t.Fatalf("the model leaves calls out of %s:\n%s", name, sideBySide(prog.String(), legal.String()))
			}
			r, err := l.Play(prog)
			if err == nil && r.Differs() {
				var sure bool
				r, sure, err = l.Confirm(prog)
				if err == nil && !sure {
					t.Logf("differed, and then did not")
					return
				}
			}
			if err != nil {
				t.Fatal(err)
			}
			if r.Differs() {
				t.Errorf("kernel and shim differ\n%s", r)
			}
		})
	}
	if n := l.offloaded(); n == 0 {
		t.Error("no socket was offloaded")
	}
}

// TestGenerate: a seed is a program, and every call of it is legal.
func TestGenerate(t *testing.T) {
	seen := map[string]int{}
	for seed := range uint64(300) {
		p := Generate(seed, programCalls, true)
		if again := Generate(seed, programCalls, true); again.String() != p.String() {
			t.Fatalf("seed %d gives two programs", seed)
		}
		legal, lines := p.Legal()
		if legal.String() != p.String() {
			t.Fatalf("seed %d: the model leaves calls out:\n%s", seed, sideBySide(p.String(), legal.String()))
		}
		_, again := legal.Legal()
		if fmt.Sprint(again) != fmt.Sprint(lines) {
			t.Fatalf("seed %d: the lines of one program differ", seed)
		}
		for _, op := range p {
			seen[op[0]]++
		}
	}
	for name := range calls {
		if seen[name] == 0 {
			t.Errorf("no program of 300 has a %s", name)
		}
	}
	t.Log(seen)
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"pno":           func() { os.Exit(Main()) },
		"loopback-http": serveText,
	})
}

// TestScripts runs testdata/script. Each script has a temporary directory of
// its own as $TMPDIR, which must be as empty afterwards as it was before.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			tmp := filepath.Join(e.WorkDir, "t")
			if err := os.Mkdir(tmp, 0o700); err != nil {
				return err
			}
			e.Setenv("TMPDIR", tmp)
			e.Setenv("PNO_LIB", harmlessLibrary(t))
			e.Setenv("SHIM", builtShim())
			e.Setenv("PATH", e.Getenv("PATH")+":/usr/sbin")
			return nil
		},
		Condition: func(cond string) (bool, error) {
			if cond == "shim" {
				return builtShim() != "", nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"status": cmdStatus,
			"json":   cmdJSON,
			"clean":  cmdClean,
		},
	})
}

// serveText is a web server for the scripts: it says its port, and its argument
// to whoever asks.
func serveText() {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(l.Addr().(*net.TCPAddr).Port)
	_ = http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, os.Args[1])
	}))
}

// builtShim is the shim that make has built, if it has.
func builtShim() string {
	path, err := filepath.Abs(filepath.Join("..", "..", "bin", libraryName))
	if err != nil {
		return ""
	}
	if _, err := os.Stat(path); err != nil {
		return ""
	}
	return path
}

// harmlessLibrary is something to preload where the shim does not matter: the C
// library, which is loaded anyway.
func harmlessLibrary(t *testing.T) string {
	t.Helper()
	for _, pattern := range []string{"/lib/*-linux-gnu/libc.so.6", "/lib*/libc.so.6", "/usr/lib*/libc.so.6"} {
		if found, _ := filepath.Glob(pattern); len(found) > 0 {
			return found[0]
		}
	}
	t.Skip("no libc.so.6 to preload on this system")
	return ""
}

// cmdStatus runs a command and compares its exit status: status N CMD….
func cmdStatus(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status N CMD [ARG…]")
	}
	err := ts.Exec(args[1], args[2:]...)
	got := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if args[0] != strconv.Itoa(got) {
		ts.Fatalf("exit status %d, want %s", got, args[0])
	}
}

// cmdJSON checks a number in a JSON file: json FILE a.b.c [VALUE].
func cmdJSON(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: json FILE FIELD [VALUE]")
	}
	var v any
	if err := json.Unmarshal([]byte(ts.ReadFile(args[0])), &v); err != nil {
		ts.Fatalf("%s: %v", args[0], err)
	}
	for _, key := range strings.Split(args[1], ".") {
		m, ok := v.(map[string]any)
		if !ok {
			ts.Fatalf("%s has no object around %s", args[0], args[1])
		}
		if v, ok = m[key]; !ok {
			ts.Fatalf("%s has no %s", args[0], args[1])
		}
	}
	if len(args) > 2 && fmt.Sprint(v) != args[2] {
		ts.Fatalf("%s is %v, want %s", args[1], v, args[2])
	}
}

// cmdClean fails when a simulation left something in $TMPDIR.
func cmdClean(ts *testscript.TestScript, neg bool, _ []string) {
	entries, err := os.ReadDir(ts.Getenv("TMPDIR"))
	ts.Check(err)
	if clean := len(entries) == 0; clean == neg {
		ts.Fatalf("%d entries in $TMPDIR: %v", len(entries), entries)
	}
}

func TestPercent(t *testing.T) {
	for _, c := range []struct {
		in   string
		want float64
		ok   bool
	}{
		{"1%", 0.01, true}, {"1", 0.01, true}, {"0.5%", 0.005, true}, {"0", 0, true}, {"100%", 1, true},
		{"", 0, false}, {"-1", 0, false}, {"101", 0, false}, {"1%%", 0, false}, {"x", 0, false}, {"NaN", 0, false},
	} {
		t.Run(c.in, func(t *testing.T) {
			var p percent
			if err := p.Set(c.in); (err == nil) != c.ok {
				t.Fatalf("error %v, want ok %v", err, c.ok)
			}
			if float64(p) != c.want {
				t.Errorf("got %v, want %v", float64(p), c.want)
			}
		})
	}
}

func TestSimConfig(t *testing.T) {
	f := simFlags{
		publish: []string{"127.0.0.1:8080=198.18.0.2:80", "[::1]:8081=[2001:2::2]:81"},
		forward: []string{"198.18.0.100:9000=127.0.0.1:9001"},
		address: []string{"198.18.0.7/15"},
		pcie:    "bluefield2", shards: 2, loopback: true, loss: 0.01,
	}
	cfg, err := f.config()
	if err != nil {
		t.Fatal(err)
	}
	ap := netip.MustParseAddrPort
	if len(cfg.Publish) != 2 || cfg.Publish[0].Outside != ap("127.0.0.1:8080") || cfg.Publish[0].Inside != ap("198.18.0.2:80") ||
		cfg.Publish[1].Inside != ap("[2001:2::2]:81") {
		t.Errorf("publish %+v", cfg.Publish)
	}
	if len(cfg.Forward) != 1 || cfg.Forward[0].Outside != ap("127.0.0.1:9001") || cfg.Forward[0].Inside != ap("198.18.0.100:9000") {
		t.Errorf("forward %+v", cfg.Forward)
	}
	if cfg.PCIe.Name != "bluefield2" || !cfg.Policy.OffloadLoopback || cfg.Faults.Loss != 0.01 || cfg.Shards != 2 ||
		len(cfg.Addresses) != 1 {
		t.Errorf("config %+v", cfg)
	}
}

func TestMergeEnv(t *testing.T) {
	got := mergeEnv([]string{"A=1", "LD_PRELOAD=old", "B=2"}, []string{"LD_PRELOAD=new"})
	slices.Sort(got)
	if !slices.Equal(got, []string{"A=1", "B=2", "LD_PRELOAD=new"}) {
		t.Errorf("merged to %q", got)
	}
}

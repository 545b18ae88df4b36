// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	dpureport "pno/dpu/report"
	hostreport "pno/host/report"
	"pno/internal/admin"
	"pno/internal/admin/admintest"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// serve runs an admin server in this process until the test ends, and returns
// its address.
func serve(t *testing.T, run func(ctx context.Context, path string, opts admin.Options) error) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	ctx, cancel := context.WithCancel(t.Context())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- run(ctx, path, admin.Options{
			Log: slog.New(slog.DiscardHandler), Ready: func(net.Addr) { close(ready) },
		})
	}()
	select {
	case <-ready:
	case err := <-done:
		t.Fatal(err)
	case <-time.After(10 * time.Second):
		t.Fatal("not ready after 10 s")
	}
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return "unix://" + path
}

func serveDPU(t *testing.T, dpu admin.DPU) string {
	return serve(t, func(ctx context.Context, path string, opts admin.Options) error {
		return admin.ServeDPU(ctx, path, dpu, opts)
	})
}

func serveHost(t *testing.T, host admin.Host) string {
	return serve(t, func(ctx context.Context, path string, opts admin.Options) error {
		return admin.ServeHost(ctx, path, host, opts)
	})
}

// result is what one run of offloadctl did.
type result struct {
	stdout, stderr string
	code           int
}

// run runs a command line against daemons given as PNO_ADMIN_* would.
func run(dpu, host string, args ...string) result {
	var stdout, stderr bytes.Buffer
	a := &App{
		Stdout: &stdout, Stderr: &stderr,
		Getenv: func(name string) string { return map[string]string{EnvDPU: dpu, EnvHost: host}[name] },
		Now:    func() time.Time { return admintest.Now },
	}
	code := a.Main(args)
	return result{stdout.String(), stderr.String(), code}
}

// volatile is what differs between runs and machines, with as many characters.
var volatile = []struct {
	pattern *regexp.Regexp
	with    string
}{
	{regexp.MustCompile(`\d\.\d\d s\b`), "0.00 s"},
	{regexp.MustCompile(`((?:cpu_(?:user|system)_seconds|heap_bytes|sys_bytes|goroutines|gcs|pid|count|interval_seconds)"?: ?)[\d.e-]+`), "${1}0"},
	{regexp.MustCompile(`("?(?:go_version|platform|model)"?: ?)("[^"]*"|.*)`), `${1}"-"`},
	{regexp.MustCompile(`(?s)("features": ?)\[[^]]*\]`), `${1}[]`},
	{regexp.MustCompile(`features:\n(?: +- .*\n)*`), "features: []\n"},
	{regexp.MustCompile(`(counted in) [\d.a-z]+`), "${1} 0s"},
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	for _, v := range volatile {
		got = v.pattern.ReplaceAllString(got, v.with)
	}
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("differs from %s (go test -update rewrites it); got:\n%s", file, got)
	}
}

// Every form of every command is held: the tables for their looks, JSON and
// YAML because programs read them.
func TestGolden(t *testing.T) {
	dpu, host := serveDPU(t, admintest.DPU{}), serveHost(t, admintest.Host{})
	commands := map[string][]string{
		"stats":   {"stats"},
		"delta":   {"stats", "--delta", "--interval", "100ms"},
		"sockets": {"sockets"},
		"rings":   {"rings"},
		"status":  {"status"},
		"policy":  {"policy"},
		"explain": {"policy", "explain", "--process", "nginx", "--listen", "198.18.0.2:80"},
	}
	for name, args := range commands {
		for _, form := range formats {
			if name == "status" && (form == formatTable || form == formatWide) {
				continue // its columns depend on this machine: TestStatusTable
			}
			t.Run(name+"_"+form, func(t *testing.T) {
				r := run(dpu, host, append(args, "-o", form)...)
				if r.code != exitOK {
					t.Fatalf("exit code %d: %s", r.code, r.stderr)
				}
				golden(t, name+"_"+form+".txt", r.stdout)
			})
		}
	}
}

// What is printed for programs is what their parsers accept.
func TestStructuredOutputParses(t *testing.T) {
	dpu, host := serveDPU(t, admintest.DPU{}), serveHost(t, admintest.Host{})
	for _, command := range []string{"stats", "sockets", "rings", "status", "policy", "version"} {
		var fromJSON, fromYAML map[string]any
		r := run(dpu, host, command, "-o", "json")
		if err := json.Unmarshal([]byte(r.stdout), &fromJSON); err != nil {
			t.Errorf("%s: %v\n%s", command, err, r.stdout)
		}
		r = run(dpu, host, command, "-o", "yaml")
		if err := yaml.Unmarshal([]byte(r.stdout), &fromYAML); err != nil {
			t.Errorf("%s: %v\n%s", command, err, r.stdout)
		}
		if len(fromJSON) == 0 || len(fromJSON) != len(fromYAML) {
			t.Errorf("%s: %d members in JSON, %d in YAML", command, len(fromJSON), len(fromYAML))
		}
	}
}

func TestSocketFilters(t *testing.T) {
	dpu := serveDPU(t, admintest.DPU{})
	tests := []struct {
		name string
		args []string
		want []string
	}{
		{"state", []string{"--state", "listen"}, []string{"198.18.0.2:80", "[2001:db8::2]:443"}},
		{"state with a star", []string{"--state", "fin-*"}, []string{"198.18.0.102:40003"}},
		{"pid", []string{"--pid", "815"}, []string{"[2001:db8::2]:443", "198.18.0.200:8080"}},
		{"process", []string{"--process", "haproxy", "--state", "syn-sent"}, []string{"198.18.0.200:8080"}},
		{"local port", []string{"--local", ":443"}, []string{"[2001:db8::2]:443"}},
		{"peer prefix", []string{"--peer", "198.18.0.200/29"}, []string{"198.18.0.200:8080"}},
		{"session", []string{"--session", "9", "--peer", ":8080"}, []string{"198.18.0.200:8080"}},
		{"expression", []string{"--filter", "retransmits > 0"}, []string{"198.18.0.101:40002"}},
		{"expression and flag", []string{"--filter", "retransmits > 0", "--pid", "815"}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := run(dpu, noAddr, append([]string{"sockets"}, tt.args...)...)
			lines := strings.Split(strings.TrimSpace(r.stdout), "\n")
			if r.code != exitOK || len(lines) != 1+len(tt.want) {
				t.Fatalf("exit code %d, %d sockets, want %d\n%s%s", r.code, len(lines)-1, len(tt.want), r.stdout, r.stderr)
			}
			for _, want := range tt.want {
				if !strings.Contains(r.stdout, want) {
					t.Errorf("no %s in\n%s", want, r.stdout)
				}
			}
		})
	}
}

// many is a DPU with more sockets than fit into a page.
type manySockets struct{ admintest.DPU }

func (manySockets) Sockets() []dpureport.Socket {
	out := make([]dpureport.Socket, 12_345)
	for i := range out {
		out[i] = dpureport.Socket{Session: 1, Handle: uint32(i), Kind: dpureport.KindConnection, State: "ESTAB"}
	}
	return out
}

func TestEveryPageIsAsked(t *testing.T) {
	r := run(serveDPU(t, manySockets{}), noAddr, "sockets", "-o", "json")
	var got struct{ Sockets []struct{ Handle uint32 } }
	if err := json.Unmarshal([]byte(r.stdout), &got); err != nil {
		t.Fatalf("%v\n%s", err, r.stderr)
	}
	if len(got.Sockets) != 12_345 {
		t.Fatalf("%d sockets", len(got.Sockets))
	}
	for i, s := range got.Sockets {
		if s.Handle != uint32(i) {
			t.Fatalf("socket %d has handle %d", i, s.Handle)
		}
	}
}

func TestWatchPrintsALineEach(t *testing.T) {
	dpu, host := serveDPU(t, admintest.DPU{}), serveHost(t, admintest.Host{})
	r := run(dpu, host, "stats", "--watch", "--count", "3", "--interval", "100ms", "-o", "json")
	lines := strings.Split(strings.TrimSuffix(r.stdout, "\n"), "\n")
	if r.code != exitOK || len(lines) != 3 {
		t.Fatalf("exit code %d, %d lines: %s", r.code, len(lines), r.stderr)
	}
	for _, line := range lines {
		var o map[string]any
		if err := json.Unmarshal([]byte(line), &o); err != nil || o["sockets_offloaded"] != 12342.0 {
			t.Errorf("%v in %s", err, line)
		}
	}
	r = run(dpu, host, "stats", "-w", "-c", "2", "-i", "100ms", "-o", "yaml")
	if n := strings.Count(r.stdout, "---\n"); n != 2 {
		t.Errorf("%d YAML documents, want 2", n)
	}
	r = run(dpu, host, "stats", "-w", "-c", "2", "-i", "100ms")
	if n := strings.Count(r.stdout, "sockets offloaded"); n != 2 || strings.Contains(r.stdout, "\x1b") {
		t.Errorf("%d tables, want 2, without escape sequences:\n%s", n, r.stdout)
	}
}

// troubled is a host agent that lost its DPU, and whose error tries to write
// to the terminal.
type troubled struct{ admintest.Host }

func (troubled) Report() hostreport.Host {
	r := admintest.Host{}.Report()
	r.DPU = hostreport.DPULink{State: "down", LastError: "connect: \x1b[2Jrefused"}
	r.Version = "v0.9.0"
	return r
}

func TestStatusOfATroubledHost(t *testing.T) {
	host := serveHost(t, troubled{})
	r := run(noAddr, host, "status")
	if r.code != exitUnhealthy || !strings.Contains(r.stdout, "hostd: the link to the DPU is down: connect: ?[2Jrefused") {
		t.Errorf("exit code %d:\n%s", r.code, r.stdout)
	}
	if want := "offloadctl: warning: hostd is v0.9.0, offloadctl is "; !strings.HasPrefix(r.stderr, want) {
		t.Errorf("stderr %q", r.stderr)
	}
	r = run(noAddr, host, "status", "-o", "json")
	var got struct {
		Host     struct{ Problems []string }
		Warnings []string
	}
	if err := json.Unmarshal([]byte(r.stdout), &got); err != nil || r.code != exitUnhealthy || len(got.Host.Problems) != 1 || len(got.Warnings) != 1 {
		t.Errorf("exit code %d, %v:\n%s", r.code, err, r.stdout)
	}
}

// A process that passes the offload by is told of; hostd is well all the same.
func TestStatusHasNotices(t *testing.T) {
	r := run(noAddr, serveHost(t, admintest.Host{}), "status")
	want := "hostd: notice: process busybox (pid 4242) has 2 kernel sockets that the policy would offload (static): use a dynamically linked build\n"
	if r.code != exitOK || !strings.Contains(r.stdout, want) {
		t.Errorf("exit code %d:\n%s", r.code, r.stdout)
	}
}

func TestErrors(t *testing.T) {
	dpu, host := serveDPU(t, admintest.DPU{}), serveHost(t, admintest.Host{})
	gone := "unix:///nonexistent/s"
	tests := []struct {
		name      string
		dpu, host string
		args      []string
		code      int
		want      string
	}{
		{"unknown command", dpu, host, []string{"frob"}, exitUsage, `unknown command "frob" for "offloadctl"`},
		{"unknown flag", dpu, host, []string{"stats", "--frob"}, exitUsage, "unknown flag: --frob"},
		{"stray argument", dpu, host, []string{"stats", "x"}, exitUsage, `unknown command "x" for "offloadctl stats"`},
		{"unknown form", dpu, host, []string{"stats", "-o", "xml"}, exitUsage, `unknown output form "xml"; there are table, wide, json, yaml`},
		{"no time", dpu, host, []string{"stats", "--timeout", "0s"}, exitUsage, "--timeout 0s: want more than 0"},
		{"negative count", dpu, host, []string{"stats", "-w", "--count", "-1"}, exitUsage, "--count -1: want 0 or more"},
		{"address", "tcp:1", host, []string{"stats"}, exitUsage, `"tcp:1" is no address of dpud: want unix:///PATH, or none`},
		{"given daemon does not run", gone, host, []string{"stats"}, exitUnreachable, "dpud is not running (there is no /nonexistent/s)"},
		{"no daemon", noAddr, noAddr, []string{"stats"}, exitUnreachable, "no daemon to ask: both addresses are none"},
		{"sockets without a DPU", noAddr, host, []string{"sockets"}, exitUnreachable, "dpud is left out (its address is none), and only it can answer this"},
		{"policy without a host", dpu, noAddr, []string{"policy"}, exitUnreachable, "hostd is left out (its address is none), and only it can answer this"},
		{"explain nothing", dpu, host, []string{"policy", "explain"}, exitUsage, "name the socket: either --listen or --connect"},
		{"explain two", dpu, host, []string{"policy", "explain", "--listen", "1.2.3.4:5", "--connect", "1.2.3.4:5"}, exitUsage, "name the socket: either --listen or --connect"},
		{"explain a name", dpu, host, []string{"policy", "explain", "--connect", "localhost:80"}, exitFailed, `address "localhost:80": want ADDRESS:PORT`},
		{"daemons mixed up", host, dpu, []string{"stats"}, exitUnreachable, "another daemon answers there (host)"},
		{"filter", dpu, host, []string{"sockets", "--filter", "frob = 1"}, exitFailed, `filter: no field "frob"`},
		{"address filter", dpu, host, []string{"sockets", "--local", "localhost"}, exitFailed, `filter: local: want an address, a prefix`},
		{"interval", dpu, host, []string{"stats", "-w", "-i", "1ms"}, exitFailed, "dpud: interval 1ms: want 100ms to 1h0m0s"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := run(tt.dpu, tt.host, tt.args...)
			if r.code != tt.code || !strings.Contains(r.stderr, "offloadctl: ") || !strings.Contains(r.stderr, tt.want) || r.stdout != "" {
				t.Errorf("exit code %d, want %d\nstdout %s\nstderr %s\nwant %s", r.code, tt.code, r.stdout, r.stderr, tt.want)
			}
			if tt.name == "unknown form" {
				return
			}
			r = run(tt.dpu, tt.host, append([]string{"-o", "json"}, tt.args...)...)
			var got struct {
				Error struct {
					Code, Message string
					ExitCode      int `json:"exit_code"`
				}
			}
			if err := json.Unmarshal([]byte(r.stdout), &got); err != nil {
				t.Fatalf("%v: %s", err, r.stdout)
			}
			if got.Error.ExitCode != tt.code || r.code != tt.code || got.Error.Code == "" || !strings.Contains(got.Error.Message, tt.want) {
				t.Errorf("exit code %d, want %d: %+v", r.code, tt.code, got.Error)
			}
		})
	}
}

func TestManPages(t *testing.T) {
	dir := t.TempDir()
	if r := run("", "", "man", "--dir", dir); r.code != exitOK {
		t.Fatal(r.stderr)
	}
	for _, page := range []string{"offloadctl", "offloadctl-stats", "offloadctl-sockets", "offloadctl-rings", "offloadctl-policy", "offloadctl-policy-explain", "offloadctl-status", "offloadctl-version"} {
		b, err := os.ReadFile(filepath.Join(dir, page+".1"))
		if err != nil {
			t.Error(err)
			continue
		}
		for _, want := range []string{".SH NAME\n" + page + ` \- `, ".SH SYNOPSIS", ".SH DESCRIPTION", `\-\-timeout`} {
			if !strings.Contains(string(b), want) {
				t.Errorf("%s.1 has no %q", page, want)
			}
		}
	}
	if r := run("", "", "man", "--dir", filepath.Join(dir, "none")); r.code != exitFailed {
		t.Errorf("exit code %d for a folder that is not there", r.code)
	}
}

func TestCompletion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if r := run("", "", "completion", shell); r.code != exitOK || !strings.Contains(r.stdout, "offloadctl") {
			t.Errorf("%s: exit code %d, %s", shell, r.code, r.stderr)
		}
	}
	r := run("", "", "__complete", "stats", "-o", "")
	if !strings.HasPrefix(r.stdout, "table\nwide\njson\nyaml\n") {
		t.Errorf("forms: %s", r.stdout)
	}
}

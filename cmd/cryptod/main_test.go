// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"pno/crypto/acl"
	"pno/crypto/audit"
	"pno/crypto/engine/libcrypto"
	"pno/internal/config"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"cryptod": main})
}

// The samples must load, and cryptod.yaml must show the defaults.
func TestSamples(t *testing.T) {
	if !libcrypto.Available {
		t.Skip("built without cgo: the default engine is another")
	}
	got := defaultSettings()
	got.Engines = nil
	if err := config.Load("../../deploy/cryptod.yaml", &got); err != nil {
		t.Fatal(err)
	}
	if want := defaultSettings(); !reflect.DeepEqual(got, want) {
		t.Errorf("deploy/cryptod.yaml\nsays     %+v\ndefaults %+v", got, want)
	}
	if r, err := acl.Load("../../deploy/crypto-acl.yaml"); err != nil || r.Len() != 2 {
		t.Errorf("deploy/crypto-acl.yaml: %v", err)
	}
	if _, err := loadAgent("../../deploy/agent.yaml"); err != nil {
		t.Errorf("deploy/agent.yaml: %v", err)
	}
}

func TestSettingsErrors(t *testing.T) {
	for name, tt := range map[string][2]string{
		"unknown key": {"lisen: x", `c:1:1: unknown key "lisen"; did you mean "listen"?`},
		"engine":      {"engines: [{kind: gpu}]", `c:1:18: "gpu" is not an engine; use auto, libcrypto, go, remote or simcard`},
		"no engine":   {"engines: []", `c:1:10: a worker without an engine computes nothing`},
		"remote":      {"engines: [{kind: remote}]", `c:1:11: a remote engine needs cluster: workers and worker_identity`},
		"provider":    {"engines: [{kind: go, provider: qat}]", `c:1:11: provider and propquery are of libcrypto, not of a go engine in this program`},
		"reload":      {"reload: 1m", `c:1:9: 1m0s, want 10ms to 4s: what is revoked must not be used for longer than 5s`},
		"metrics":     {"metrics: 0.0.0.0:9466", `c:1:10: "0.0.0.0:9466" is not a loopback address with a port, as 127.0.0.1:9466, nor none`},
		"memory":      {"lock_memory: maybe", `c:1:14: "maybe" says nothing; use try, required or off`},
		"limits":      {"limits: {client_streams: 0}", `c:1:26: 0, want 1 to 1048576`},
		"summary":     {"audit: {summary: 2h}", `c:1:8: summary every 2h0m0s, want 100ms to 1h`},
		"inflight":    {"max_inflight: 0", `c:1:15: 0 operations, want 1 to 65536`},
	} {
		set := defaultSettings()
		if err := config.Parse("c", []byte(tt[0]), &set); err == nil || err.Error() != tt[1] {
			t.Errorf("%s:\ngot  %v\nwant %s", name, err, tt[1])
		}
	}
}

func TestAgentErrors(t *testing.T) {
	for name, tt := range map[string][2]string{
		"empty":      {"", "has no agent section"},
		"no sockets": {"agent: {clusters: []}", "needs listen"},
		"no cluster": {"agent: {listen: [{path: /x}]}", "needs clusters"},
		"no tls":     {"agent: {listen: [{path: /x}], clusters: [{workers: [\"a:1\"], worker_identity: \"x://y/z\"}]}", "needs tls"},
		"identity":   {"agent: {listen: [{path: /x}], clusters: [{workers: [\"a:1\"], worker_identity: \"spiffe://a*\"}]}", "means other hosts"},
		"verify":     {"agent: {listen: [{path: /x}], clusters: [{workers: [\"a:1\"], worker_identity: x, verify: some}]}", `"some" says nothing`},
	} {
		file := filepath.Join(t.TempDir(), "a")
		if err := os.WriteFile(file, []byte(tt[0]), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := loadAgent(file); err == nil || !strings.Contains(err.Error(), tt[1]) {
			t.Errorf("%s: got %v, want %q", name, err, tt[1])
		}
	}
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata/script"})
}

// systemd does not start a worker again whose configuration is wrong.
func TestExitCodes(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad.yaml")
	write(t, bad, "listen: [\n")
	for code, args := range map[int][]string{
		exitUsage:  {"agent", "--config", bad},
		exitFailed: {"audit", "verify", "/none"},
		0:          {"--version"},
	} {
		cmd := exec.Command("cryptod", args...)
		out, _ := cmd.CombinedOutput() // the code tells
		if got := cmd.ProcessState.ExitCode(); got != code {
			t.Errorf("cryptod %v: exit code %d, want %d\n%s", args, got, code, out)
		}
	}
}

// An empty file is good only after one with records: the log was rotated just now.
func TestVerifyEmpty(t *testing.T) {
	dir := t.TempDir()
	full, empty := filepath.Join(dir, "full"), filepath.Join(dir, "empty")
	log, err := audit.Open(audit.Config{Path: full})
	if err != nil {
		t.Fatal(err)
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	write(t, empty, "")
	for _, tt := range []struct {
		files []string
		code  int
	}{{[]string{full}, 0}, {[]string{full, empty}, 0}, {[]string{empty}, exitFailed}, {[]string{empty, empty}, exitFailed}} {
		cmd := exec.Command("cryptod", append([]string{"audit", "verify"}, tt.files...)...)
		out, _ := cmd.CombinedOutput() // the code tells
		if got := cmd.ProcessState.ExitCode(); got != tt.code {
			t.Errorf("verify %v: exit code %d, want %d\n%s", tt.files, got, tt.code, out)
		}
	}
}

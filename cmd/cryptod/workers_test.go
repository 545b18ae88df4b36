// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"pno/crypto/cryptotest"
	"pno/crypto/mtls/mtlstest"
)

// A worker that serves, and one that is not there: each has its line, and the
// exit code tells that not all is well.
func TestWorkersCommand(t *testing.T) {
	_, dir, kek := cryptotest.NewStore(t, "P-256")
	ca := mtlstest.NewAuthority(t)
	w := newProcess(t, ca, "a", dir, kek, cryptotest.AllowAll)
	gone := cryptotest.FreeAddr(t)
	both := agentConfig(t, ca, t.TempDir(), w.addr, gone)

	cmd := exec.Command("cryptod", "workers", "--config", both, "-o", "json")
	var complaint strings.Builder
	cmd.Stderr = &complaint
	out, _ := cmd.Output() // the code tells
	if code := cmd.ProcessState.ExitCode(); code != exitFailed || !strings.Contains(complaint.String(), "1 of 2 workers do not serve") {
		t.Errorf("exit code %d, %q", code, complaint.String())
	}
	var lines []workerLine
	if err := json.Unmarshal(out, &lines); err != nil || len(lines) != 2 {
		t.Fatalf("%v\n%s", err, out)
	}
	byAddr := map[string]workerLine{lines[0].Address: lines[0], lines[1].Address: lines[1]}
	good, bad := byAddr[w.addr], byAddr[gone]
	if good.State != "serving" || good.Name != "a" || good.MaxInflight == 0 || len(good.Engines) == 0 ||
		good.Engines[0].Kind == "" || good.Engines[0].Capacity == 0 || good.Engines[0].Features == nil {
		t.Errorf("the worker that serves: %+v", good)
	}
	if bad.State != "error" || !strings.Contains(bad.Error, "connection refused") {
		t.Errorf("the one that is not there: %+v", bad)
	}

	one := agentConfig(t, ca, t.TempDir(), w.addr)
	text, err := exec.Command("cryptod", "workers", "--config", one).CombinedOutput()
	if err != nil || !strings.Contains(string(text), w.addr) || !strings.Contains(string(text), "serving") {
		t.Errorf("%v\n%s", err, text)
	}

	// A cluster whose worker says nothing, one whose name cannot be looked up, and one
	// that serves: what the first two take is not taken from the third.
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	conf, err := os.ReadFile(one)
	if err != nil {
		t.Fatal(err)
	}
	entry := fmt.Sprintf("{workers: [%q], worker_identity: %q}", w.addr, cryptotest.WorkerURI)
	others := strings.Replace(entry, w.addr, silent.Addr().String(), 1) + "\n    - " + strings.Replace(entry, w.addr, "dns:///no.such.name.invalid:1", 1)
	three := filepath.Join(t.TempDir(), "agent.yaml")
	write(t, three, strings.Replace(string(conf), entry, others+"\n    - "+entry, 1))
	out, _ = exec.Command("cryptod", "workers", "--config", three, "-o", "json", "--timeout", "2900ms").Output() // less than a handshake may take
	lines = nil
	if err := json.Unmarshal(out, &lines); err != nil || len(lines) != 3 {
		t.Fatalf("three clusters: %v\n%s", err, out)
	}
	for i, state := range []string{"error", "error", "serving"} {
		if lines[i].State != state || (lines[i].Error == "") != (state == "serving") {
			t.Errorf("cluster %d: %+v, want %s", i+1, lines[i], state)
		}
	}

	stranger := mtlstest.NewAuthority(t)
	foreign := agentConfig(t, stranger, t.TempDir(), w.addr)
	began := time.Now()
	text, err = exec.Command("cryptod", "workers", "--config", foreign, "--timeout", "20s").CombinedOutput()
	if err == nil || !strings.Contains(string(text), "certificate") {
		t.Errorf("a worker of another authority: %v\n%s", err, text)
	}
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("it took %v to say so", took)
	}
	w.end(t, syscall.SIGTERM)
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"pno/crypto/agent"
	"pno/crypto/cryptotest"
	"pno/crypto/engine/enginetest"
	"pno/crypto/mtls/mtlstest"
	"pno/crypto/signing"
)

// agentProcess is an agent of its own, and a connection to it.
type agentProcess struct {
	cmd  *exec.Cmd
	sock string
	conn net.Conn
}

// agentConfig writes the configuration of an agent that listens at dir/s.
func agentConfig(t *testing.T, ca *mtlstest.Authority, dir string, workers ...string) (file string) {
	t.Helper()
	files := ca.Issue(t, cryptotest.ProxyURI, time.Hour)
	file = filepath.Join(dir, "agent.yaml")
	write(t, file, fmt.Sprintf("agent:\n  listen: [{path: %s/s}]\n  tls: {cert: %s, key: %s, ca: %s}\n  clusters:\n    - {workers: [%s], worker_identity: %q}\nmetrics: none\n",
		dir, files.Cert, files.Key, files.CA, `"`+strings.Join(workers, `", "`)+`"`, cryptotest.WorkerURI))
	return file
}

func startAgent(t *testing.T, ca *mtlstest.Authority, worker string) *agentProcess {
	t.Helper()
	dir := t.TempDir()
	conf := agentConfig(t, ca, dir, worker)
	a := &agentProcess{sock: filepath.Join(dir, "s")}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	a.cmd = exec.Command("cryptod", "agent", "--config", conf)
	a.cmd.Stderr = log
	if err := a.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if a.conn != nil {
			a.conn.Close()
		}
		if a.cmd.ProcessState == nil {
			_ = a.cmd.Process.Kill()
			_ = a.cmd.Wait()
		}
		if text, err := os.ReadFile(log.Name()); err == nil && t.Failed() {
			t.Logf("agent:\n%s", text)
		}
	})
	for deadline := time.Now().Add(10 * time.Second); a.conn == nil; time.Sleep(10 * time.Millisecond) {
		if c, err := net.Dial("unixpacket", a.sock); err == nil {
			a.conn = c
		} else if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	_ = a.conn.SetDeadline(time.Now().Add(20 * time.Second))
	a.ask(t, agent.AppendHello(nil, uint32(os.Getpid()), "test"))
	return a
}

// ask sends a packet, and returns the first message of the next.
func (a *agentProcess) ask(t *testing.T, packet []byte) any {
	t.Helper()
	if _, err := a.conn.Write(packet); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, agent.MaxPacket)
	n, err := a.conn.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	msg, _, err := agent.Next(buf[:n])
	if err != nil {
		t.Fatal(err)
	}
	return msg
}

func (a *agentProcess) sign(t *testing.T, req *signing.Request) signing.Status {
	t.Helper()
	return signing.Status(a.ask(t, agent.AppendOp(nil, 1, req, 0)).(*agent.Result).Status)
}

// The agent as a program, from its configuration, between the provider's socket
// and a worker; the worker's audit log verifies after that.
func TestAgentProgram(t *testing.T) {
	_, dir, kek := cryptotest.NewStore(t, "P-256")
	ca := mtlstest.NewAuthority(t)
	w := newProcess(t, ca, "a", dir, kek, cryptotest.AllowAll)
	a := startAgent(t, ca, w.addr)
	req := &signing.Request{Key: enginetest.Key(t, "P-256").ID, Scheme: signing.ECDSAP256SHA256, Input: signing.Digest, Data: make([]byte, 32)}
	if got := a.sign(t, req); got != signing.OK {
		t.Errorf("got %v", got)
	}
	_ = a.cmd.Process.Signal(syscall.SIGTERM)
	if err := a.cmd.Wait(); err != nil {
		t.Errorf("end of the agent: %v", err)
	}
	w.end(t, syscall.SIGTERM)
	// One operation, and the probe of the port that start made.
	out, err := exec.Command("cryptod", "audit", "verify", filepath.Join(w.dir, "audit")).CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), "good: 2 operations and refusals, 0 lost") {
		t.Errorf("%v\n%s", err, out)
	}
}

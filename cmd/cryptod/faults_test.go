// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
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
	"pno/crypto/client"
	"pno/crypto/cryptotest"
	"pno/crypto/engine/enginetest"
	"pno/crypto/keystore"
	"pno/crypto/mtls/mtlstest"
	"pno/crypto/signing"
)

// process is a worker of its own.
type process struct {
	addr, config, dir string
	cmd               *exec.Cmd
	log               *os.File
}

// freeAddr is a port that nobody has right now.
func freeAddr(t *testing.T) string {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	return lis.Addr().String()
}

func newProcess(t *testing.T, ca *mtlstest.Authority, name, store, kek, rules string) *process {
	t.Helper()
	p := &process{addr: freeAddr(t), dir: t.TempDir()}
	log, err := os.OpenFile(filepath.Join(p.dir, "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	p.log = log
	files := ca.Issue(t, "spiffe://pno.test/cryptod/"+name, time.Hour)
	p.config = filepath.Join(p.dir, "cryptod.yaml")
	write(t, filepath.Join(p.dir, "acl.yaml"), rules)
	write(t, p.config, fmt.Sprintf("name: %s\nlisten: %q\ntls: {cert: %s, key: %s, ca: %s}\nacl: %s/acl.yaml\nkeys: {dir: %s, kek: %q}\n"+
		"audit: {path: %s/audit}\nmetrics: none\nreload: 100ms\ndrain: 3s\nlog: {level: debug, format: text}\n",
		name, p.addr, files.Cert, files.Key, files.CA, p.dir, store, kek, p.dir))
	t.Cleanup(func() {
		if p.cmd != nil {
			_ = p.cmd.Process.Kill()
			_ = p.cmd.Wait()
		}
		if t.Failed() {
			t.Logf("%s:\n%s", name, p.said(t))
		}
		p.log.Close()
	})
	p.start(t)
	return p
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (p *process) start(t *testing.T) {
	t.Helper()
	p.cmd = exec.Command("cryptod", "--config", p.config)
	p.cmd.Stderr = p.log
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if c, err := net.Dial("tcp", p.addr); err == nil {
			c.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the worker does not listen:\n%s", p.said(t))
		}
	}
}

// said is what the worker has logged.
func (p *process) said(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(p.log.Name())
	if err != nil {
		t.Error(err)
	}
	return string(text)
}

func (p *process) end(t *testing.T, sig os.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
	err := p.cmd.Wait()
	if sig == syscall.SIGTERM && err != nil {
		t.Errorf("end of a worker: %v", err)
	}
	p.cmd = nil
}

// Real processes are killed, stopped and restarted under a steady load.
func TestWorkersDie(t *testing.T) {
	if testing.Short() {
		t.Skip("some seconds of load")
	}
	const kind, long = "RSA-2048", 500 * time.Millisecond
	store, dir, kek := cryptotest.NewStore(t, kind)
	ca := mtlstest.NewAuthority(t)
	var workers []*process
	var addrs []string
	for _, name := range []string{"a", "b", "c"} {
		w := newProcess(t, ca, name, dir, kek, cryptotest.AllowAll)
		workers, addrs = append(workers, w), append(addrs, w.addr)
	}
	cluster, err := client.NewCluster(client.Config{Identity: cryptotest.Identity(t, ca, cryptotest.ProxyURI), Workers: addrs, WorkerIdentity: cryptotest.WorkerURI})
	if err != nil {
		t.Fatal(err)
	}
	cl, err := client.New(0, cluster)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	key, err := cl.Signer(enginetest.Key(t, kind).Public)
	if err != nil {
		t.Fatal(err)
	}
	load := cryptotest.StartLoad(t, cryptotest.Certificate(t, kind, key), 6, 5*time.Millisecond)
	defer load.Stop()

	load.Phase(t, "three workers", long)
	workers[0].end(t, syscall.SIGKILL)
	load.Phase(t, "one killed", long)
	workers[0].start(t)
	load.Phase(t, "it is back", long)
	if err := workers[1].cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	load.Phase(t, "one stopped", 3*long)
	workers[0].end(t, syscall.SIGKILL)
	load.Phase(t, "and one killed", long)
	workers[0].start(t)
	if err := workers[1].cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	load.Phase(t, "both are back", 2*long)
	for _, w := range workers {
		w.end(t, syscall.SIGTERM)
		w.start(t)
		load.Phase(t, "rolling restart", long)
	}
	cryptotest.Import(t, store, "P-256", keystore.Options{Name: "late"})
	load.Phase(t, "a key is added", long)
	if !strings.Contains(workers[2].said(t), "keys loaded") {
		t.Error("no word of keys in the log")
	}
	t.Logf("%+v", cluster.Stats())
}

// The agent as a program, from its configuration, between the provider's socket
// and a worker; the worker's audit log verifies after that.
func TestAgentProgram(t *testing.T) {
	_, dir, kek := cryptotest.NewStore(t, "P-256")
	ca := mtlstest.NewAuthority(t)
	w := newProcess(t, ca, "a", dir, kek, cryptotest.AllowAll)
	files := ca.Issue(t, cryptotest.ProxyURI, time.Hour)
	here := t.TempDir()
	conf, sock := filepath.Join(here, "agent.yaml"), filepath.Join(here, "s")
	write(t, conf, fmt.Sprintf("agent:\n  listen: [{path: %s}]\n  tls: {cert: %s, key: %s, ca: %s}\n  clusters:\n    - {workers: [%q], worker_identity: %q}\n",
		sock, files.Cert, files.Key, files.CA, w.addr, cryptotest.WorkerURI))
	cmd := exec.Command("cryptod", "agent", "--config", conf)
	var log bytes.Buffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill() }()
	var c net.Conn
	var err error
	for range 500 {
		if c, err = net.Dial("unixpacket", sock); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, log.String())
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	buf := make([]byte, agent.MaxPacket)
	ask := func(b []byte) any {
		t.Helper()
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
		n, err := c.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		msg, _, err := agent.Next(buf[:n])
		if err != nil {
			t.Fatal(err)
		}
		return msg
	}
	ask(agent.AppendHello(nil, uint32(os.Getpid()), "test"))
	req := &signing.Request{Key: enginetest.Key(t, "P-256").ID, Scheme: signing.ECDSAP256SHA256, Input: signing.Digest, Data: make([]byte, 32)}
	if r := ask(agent.AppendOp(nil, 1, req, 0)).(*agent.Result); signing.Status(r.Status) != signing.OK {
		t.Errorf("got %v\n%s", signing.Status(r.Status), log.String())
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
	if err := cmd.Wait(); err != nil {
		t.Errorf("end of the agent: %v\n%s", err, log.String())
	}
	w.end(t, syscall.SIGTERM)
	// One operation, and the probe of the port that start made.
	out, err := exec.Command("cryptod", "audit", "verify", filepath.Join(w.dir, "audit")).CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), "good: 2 operations and refusals, 0 lost") {
		t.Errorf("%v\n%s", err, out)
	}
}

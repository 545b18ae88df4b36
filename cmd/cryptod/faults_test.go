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

	"pno/crypto/client"
	"pno/crypto/cryptotest"
	"pno/crypto/engine/enginetest"
	"pno/crypto/keystore"
	"pno/crypto/mtls"
	"pno/crypto/mtls/mtlstest"
	"pno/crypto/signing"
)

// process is a worker of its own.
type process struct {
	addr, config, dir string
	cmd               *exec.Cmd
	log               *os.File
}

func newProcess(t *testing.T, ca *mtlstest.Authority, name, store, kek, rules string, more ...string) *process {
	t.Helper()
	p := &process{addr: cryptotest.FreeAddr(t), dir: t.TempDir()}
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
		name, p.addr, files.Cert, files.Key, files.CA, p.dir, store, kek, p.dir)+strings.Join(more, "\n"))
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
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
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
	cluster, err := client.NewCluster(client.Config{Identity: cryptotest.Identity(t, ca, cryptotest.ProxyURI), Workers: addrs, WorkerIdentity: cryptotest.WorkerURI, Attempts: 8, Wait: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	cl, err := client.New(20*time.Second, cluster) // for a machine that is busy otherwise
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

// What is revoked in the file of access rules is not used for longer than five
// seconds, on a stream that is open, and the audit log says who was sent away.
func TestRevocationInTime(t *testing.T) {
	_, dir, kek := cryptotest.NewStore(t, "P-256")
	ca := mtlstest.NewAuthority(t)
	w := newProcess(t, ca, "a", dir, kek, cryptotest.AllowAll)
	files := mtls.Files{Cert: filepath.Join(w.dir, "c"), Key: filepath.Join(w.dir, "k"), CA: filepath.Join(w.dir, "ca")}
	cert := ca.IssueInto(t, files, cryptotest.ProxyURI, time.Hour)
	id, err := mtls.Load(files)
	if err != nil {
		t.Fatal(err)
	}
	cl, err := client.NewCluster(client.Config{Identity: id, Workers: []string{w.addr}, WorkerIdentity: cryptotest.WorkerURI, Verify: client.VerifyOff, Wait: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	ask := func() error {
		op := &client.Op{Request: signing.Request{Key: enginetest.Key(t, "P-256").ID, Scheme: signing.ECDSAP256SHA256, Input: signing.Digest, Data: make([]byte, 32)}}
		_, err := cl.Do(time.Now().Add(2*time.Second), op)
		return err
	}
	for deadline := time.Now().Add(10 * time.Second); ask() != nil; {
		if time.Now().After(deadline) {
			t.Fatal("the worker does not answer")
		}
	}
	revoked := time.Now()
	write(t, filepath.Join(w.dir, "acl.yaml"), cryptotest.AllowAll+fmt.Sprintf("revoked: [\"serial:%x\"]\n", cert.SerialNumber))
	for ask() == nil {
		if time.Since(revoked) > 5*time.Second {
			t.Fatal("a revoked certificate is still good after 5 s")
		}
		time.Sleep(time.Millisecond)
	}
	t.Logf("revoked %v after the file was written", time.Since(revoked).Round(time.Millisecond))
	if !strings.Contains(w.said(t), "lost its right") {
		t.Error("no word of it in the log")
	}
}

// After a rotation of the KEK a worker goes on, and opens new keys as soon as the
// new KEK is where the former was.
func TestKEKRotated(t *testing.T) {
	store, dir, kek := cryptotest.NewStore(t, "P-256")
	ca := mtlstest.NewAuthority(t)
	w := newProcess(t, ca, "a", dir, kek, cryptotest.AllowAll)
	path := strings.TrimPrefix(kek, "file:")
	if err := keystore.NewKEKFile(path + ".new"); err != nil {
		t.Fatal(err)
	}
	next, err := keystore.OpenKEK("file:" + path + ".new")
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	if n, err := store.Rotate(next); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	cryptotest.Import(t, store.WithKEK(next), "Ed25519", keystore.Options{Name: "late"})
	said := func(text string) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); !strings.Contains(w.said(t), text); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("the worker does not say %q", text)
			}
		}
	}
	said("the KEK does not open it")
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	if err := w.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	said("KEK opened again")
	said("added=1 removed=0 kept=1")
}

// An authority that is taken away ends the streams of its clients with the
// reload that sees it, not with a later look at them.
func TestAuthorityRemoved(t *testing.T) {
	_, dir, kek := cryptotest.NewStore(t, "P-256")
	ca := mtlstest.NewAuthority(t)
	w := newProcess(t, ca, "a", dir, kek, cryptotest.AllowAll)
	w.end(t, syscall.SIGTERM)
	text, err := os.ReadFile(w.config)
	if err != nil {
		t.Fatal(err)
	}
	write(t, w.config, strings.Replace(string(text), "reload: 100ms", "reload: 4s", 1))
	set, err := loadSettings(w.config)
	if err != nil {
		t.Fatal(err)
	}
	w.start(t)
	began := time.Now()
	id, err := mtls.Load(ca.Issue(t, cryptotest.ProxyURI, time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	cl, err := client.NewCluster(client.Config{Identity: id, Workers: []string{w.addr}, WorkerIdentity: cryptotest.WorkerURI, Wait: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	op := &client.Op{Request: signing.Request{Key: enginetest.Key(t, "P-256").ID, Scheme: signing.ECDSAP256SHA256, Input: signing.Digest, Data: make([]byte, 32)}}
	if _, err := cl.Do(time.Now().Add(10*time.Second), op); err != nil {
		t.Fatal(err)
	}
	other, err := os.ReadFile(mtlstest.NewAuthority(t).Issue(t, "spiffe://pno.test/other", time.Hour).CA)
	if err != nil {
		t.Fatal(err)
	}
	write(t, set.TLS.CA, string(other))
	if err := w.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	changed := time.Now()
	for !strings.Contains(w.said(t), "lost its right") {
		if time.Since(changed) > 5*time.Second {
			t.Fatal("the stream is open after 5 s")
		}
		time.Sleep(time.Millisecond)
	}
	// The look of its own that comes every 4 s would be later, on all but a stalled machine.
	if took := time.Since(changed); took > 2*time.Second && time.Since(began) > 3900*time.Millisecond {
		t.Errorf("the stream was ended %v after the authority went", took)
	}
}

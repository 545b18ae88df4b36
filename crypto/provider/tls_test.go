// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"pno/crypto/agent"
	"pno/crypto/cryptotest"
	"pno/crypto/provider/agenttest"
)

// server is a running openssl s_server.
type server struct {
	addr string
	web  bool // answers HTTP
	cmd  *exec.Cmd
	log  *bytes.Buffer
	done chan struct{}
}

// serve starts openssl s_server with the key by reference. In mode "async" it
// does handshakes inside of jobs, and is no web server: s_server -www would
// sleep a second each time that it has to wait for a job.
func serve(t testing.TB, a *agenttest.Agent, k *agenttest.Key, mode string, args ...string) *server {
	t.Helper()
	return servePatient(t, a, k, mode, 3*time.Second, args...)
}

// servePatient is serve with the provider's patience with an operation.
func servePatient(t testing.TB, a *agenttest.Agent, k *agenttest.Key, mode string, patience time.Duration, args ...string) *server {
	t.Helper()
	cert, ref, _ := k.Files(t)
	s := &server{addr: cryptotest.FreeAddr(t), web: mode != "async", log: &bytes.Buffer{}, done: make(chan struct{})}
	args = append([]string{"s_server", "-accept", s.addr, "-cert", cert, "-key", ref}, args...)
	if s.web {
		args = append(args, "-www")
	} else {
		args = append(args, "-async")
	}
	s.cmd = exec.Command("openssl", args...)
	s.cmd.Env = env(a, fmt.Sprint("PNO_AGENT_TIMEOUT_MS=", patience.Milliseconds()))
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	s.cmd.Stderr = s.cmd.Stdout
	// It must not see the end of its input, and dies with this process.
	if _, err := s.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ready := make(chan bool, 1)
	go func() {
		defer close(s.done)
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			fmt.Fprintln(s.log, lines.Text())
			if strings.HasPrefix(lines.Text(), "ACCEPT") {
				select {
				case ready <- true:
				default:
				}
			}
		}
	}()
	t.Cleanup(func() { s.stop() })
	select {
	case <-ready:
	case <-s.done:
		t.Fatalf("openssl s_server: %s", s.log)
	case <-time.After(10 * time.Second):
		t.Fatal("openssl s_server does not accept")
	}
	return s
}

// stop ends the server and returns what it said.
func (s *server) stop() string {
	s.cmd.Process.Kill()
	<-s.done
	s.cmd.Wait()
	return s.log.String()
}

func clientConfig(k *agenttest.Key, version uint16) *tls.Config {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(k.Cert)
	return &tls.Config{RootCAs: roots, ServerName: "localhost", MinVersion: version, MaxVersion: version}
}

// get does one full handshake with Go's client, and a request if it can.
func (s *server) get(cfg *tls.Config) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := (&tls.Dialer{Config: cfg}).DialContext(ctx, "tcp", s.addr)
	if err != nil {
		return err
	}
	defer c.Close()
	if !s.web {
		return nil
	}
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(c, "GET / HTTP/1.0\r\n\r\n"); err != nil {
		return err
	}
	if n, err := c.Read(make([]byte, 64)); n == 0 {
		return fmt.Errorf("no answer: %w", err)
	}
	return nil
}

// Handshakes of every type of key and both versions, blocking and inside an
// async job, with OpenSSL's client, curl and Go's client.
func TestHandshakes(t *testing.T) {
	for _, kind := range agenttest.Kinds {
		for _, mode := range []string{"blocking", "async"} {
			t.Run(kind+"/"+mode, func(t *testing.T) {
				t.Parallel()
				k := agenttest.NewKey(t, kind)
				a := agenttest.New(t, k).Start()
				s := serve(t, a, k, mode)
				for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
					for range 3 {
						if err := s.get(clientConfig(k, version)); err != nil {
							t.Fatalf("%s: %v\n%s", tls.VersionName(version), err, s.stop())
						}
					}
					programs(t, k, s, version)
				}
				// One operation a handshake: nothing was resumed, nothing was lost.
				want := int64(8)
				if s.web {
					want = 10
				}
				if ops, hellos := a.Ops.Load(), a.Hellos.Load(); ops != want || hellos != 1 {
					t.Errorf("%d operations on %d connections, want %d on 1", ops, hellos, want)
				}
			})
		}
	}
}

func programs(t *testing.T, k *agenttest.Key, s *server, version uint16) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cert, _, _ := k.Files(t)
	flag, max := "-tls1_2", "1.2"
	if version == tls.VersionTLS13 {
		flag, max = "-tls1_3", "1.3"
	}
	c := exec.CommandContext(ctx, "openssl", "s_client", "-connect", s.addr, "-CAfile", cert, "-verify_return_error", flag, "-brief")
	if out, err := c.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("Verification: OK")) {
		t.Errorf("openssl s_client %s: %v\n%s", flag, err, out)
	}
	if !s.web {
		return
	}
	c = exec.CommandContext(ctx, "curl", "-sS", "--cacert", cert, "--tlsv"+max, "--tls-max", max, "https://"+s.addr+"/")
	if out, err := c.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("s_server")) {
		t.Errorf("curl TLS %s: %v\n%s", max, err, out)
	}
}

// A key for TLS 1.3 only does that, and nothing else.
func TestTLS13Only(t *testing.T) {
	for _, kind := range []string{"rsa2048", "p256", "ed25519"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			k := agenttest.Another(t, kind)
			k.TLS13Only = true
			a := agenttest.New(t, k).Start()
			s := serve(t, a, k, "blocking")
			if err := s.get(clientConfig(k, tls.VersionTLS13)); err != nil {
				t.Error(err)
			}
			if err := s.get(clientConfig(k, tls.VersionTLS12)); err == nil {
				t.Error("a TLS 1.2 handshake works")
			}
			_, ref, _ := k.Files(t)
			if out, err := openssl(t, a, "req", "-new", "-key", ref, "-subj", "/CN=x"); err == nil || !strings.Contains(out, "TLS 1.3 handshakes only") {
				t.Errorf("request for a certificate: %v\n%s", err, out)
			}
			if n := a.Ops.Load(); n != 1 {
				t.Errorf("%d operations, want 1", n)
			}
		})
	}
}

// The agent knows a process in a pid namespace of its own by another pid.
func TestPIDNamespace(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, for a pid namespace")
	}
	c := cryptotest.New(t, 1, cryptotest.AllowAll, "P-256")
	path := filepath.Join(t.TempDir(), "agent.sock")
	defer realAgent(t, c, path)()
	_, ref, _ := clusterKey(t, "P-256").Files(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "openssl", "req", "-new", "-key", ref, "-subj", "/CN=x")
	cmd.Env = env(&agenttest.Agent{Path: path}, "PNO_AGENT_TIMEOUT_MS=5000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// RSA key exchange of TLS 1.2: the premaster secret is decrypted remotely.
func TestRSAKeyExchange(t *testing.T) {
	k := agenttest.NewKey(t, "rsa2048")
	a := agenttest.New(t, k).Start()
	s := serve(t, a, k, "blocking", "-cipher", "AES128-GCM-SHA256")
	cfg := clientConfig(k, tls.VersionTLS12)
	cfg.CipherSuites = []uint16{tls.TLS_RSA_WITH_AES_128_GCM_SHA256}
	if err := s.get(cfg); err != nil {
		t.Errorf("%v\n%s", err, s.stop())
	}
	if a.Ops.Load() != 1 {
		t.Error("no operation came to the agent")
	}
}

// What the agent does wrong ends in a failed handshake with the reason on the
// error stack, and never in more than that: the next one works.
func TestFaults(t *testing.T) {
	k := agenttest.NewKey(t, "p256")
	garbage := func(n int) []byte { return bytes.Repeat([]byte{0x5a}, n) }
	for _, c := range []struct {
		name   string
		faults agenttest.Faults
		want   string
	}{
		{"garbage", agenttest.Faults{Result: func(*agent.Op, []byte) []byte { return garbage(512) }}, "did not answer in time|cannot be reached"},
		{"garbage welcome", agenttest.Faults{Welcome: func(*agent.Hello) []byte { return garbage(32) }}, "malformed welcome"},
		{"refused", agenttest.Faults{Welcome: func(h *agent.Hello) []byte {
			return agent.AppendRefused(nil, h.ID, 1, "user 7 may not\n")
		}}, "user 7 may not"},
		{"another id", agenttest.Faults{Result: func(o *agent.Op, right []byte) []byte { right[16]++; return right }}, "did not answer in time|cannot be reached"},
		{"cut", agenttest.Faults{Result: func(o *agent.Op, right []byte) []byte { return right[:len(right)-8] }}, "did not answer in time|cannot be reached"},
		{"too long", agenttest.Faults{Result: func(o *agent.Op, right []byte) []byte {
			return agent.AppendResult(nil, o.ID, 1, 1, garbage(1024))
		}}, "impossible answer"},
		{"silence", agenttest.Faults{Result: func(*agent.Op, []byte) []byte { return nil }}, "did not answer in time"},
		{"denied", agenttest.Faults{Result: func(o *agent.Op, _ []byte) []byte { return agent.AppendResult(nil, o.ID, 3, 1, nil) }}, "not allowed by the access rules"},
		{"unavailable", agenttest.Faults{Result: func(o *agent.Op, _ []byte) []byte { return agent.AppendResult(nil, o.ID, 9, 1, nil) }}, "workers cannot do it"},
	} {
		for _, mode := range []string{"blocking", "async"} {
			t.Run(c.name+"/"+mode, func(t *testing.T) {
				t.Parallel()
				a := agenttest.New(t, k)
				a.Faults = c.faults
				a.Start()
				s := servePatient(t, a, k, mode, 1500*time.Millisecond)
				start := time.Now()
				if err := s.get(clientConfig(k, tls.VersionTLS13)); err == nil {
					t.Error("the handshake works")
				}
				if took := time.Since(start); took > 20*time.Second {
					t.Errorf("failed after %v", took)
				}
				a.Stop()
				a.Faults = agenttest.Faults{}
				a.Start()
				if err := s.get(clientConfig(k, tls.VersionTLS13)); err != nil {
					t.Errorf("after that: %v", err)
				}
				log := s.stop()
				for _, want := range strings.Split(c.want, "|") {
					if strings.Contains(log, want) {
						return
					}
				}
				t.Errorf("no reason %q in\n%s", c.want, log)
			})
		}
	}
}

// The agent may go away at any time: operations wait for the next one.
func TestAgentRestart(t *testing.T) {
	k := agenttest.NewKey(t, "p256")
	a := agenttest.New(t, k)
	s := servePatient(t, a, k, "async", 5*time.Second)
	if err := s.get(clientConfig(k, tls.VersionTLS13)); err == nil {
		t.Fatal("a handshake without an agent works")
	}
	// The first operation after that waits for an attempt to connect, and finds it.
	a.Start()
	if err := s.get(clientConfig(k, tls.VersionTLS13)); err != nil {
		t.Errorf("with an agent at last: %v", err)
	}
	a.Stop()
	for round := range 5 {
		a.Faults.Latency = 50 * time.Millisecond
		a.Start()
		done := make(chan error, 1)
		go func() { done <- s.get(clientConfig(k, tls.VersionTLS13)) }()
		time.Sleep(20 * time.Millisecond) // in the middle of the operation, or before it
		a.Stop()
		time.Sleep(100 * time.Millisecond)
		a.Start()
		if err := <-done; err != nil {
			t.Errorf("round %d: %v", round, err)
		}
		a.Stop()
	}
	if out := s.stop(); !strings.Contains(out, "key agent cannot be reached") {
		t.Errorf("no reason for the first failure in\n%s", out)
	}
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"pno/crypto/agent"
	"pno/crypto/cryptotest"
	"pno/crypto/engine/enginetest"
	"pno/crypto/signing"
)

// The key agent inside hostd: from its section of the configuration to a
// signature, its metrics among hostd's, its health by a name of its own.
func TestKeyAgent(t *testing.T) {
	c := cryptotest.New(t, 1, cryptotest.AllowAll, "P-256")
	files := c.CA.Issue(t, cryptotest.ProxyURI, time.Hour)
	dir := t.TempDir()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	metrics := lis.Addr().String()
	lis.Close()
	conf := filepath.Join(dir, "hostd.yaml")
	text := fmt.Sprintf("listen: %[1]s/a\ndpu: %[1]s/d\nadmin: %[1]s/admin\nmetrics: %[2]s\nstate: none\n"+
		"agent:\n  listen: [{path: %[1]s/keys}]\n  tls: {cert: %[3]s, key: %[4]s, ca: %[5]s}\n  clusters: [{name: here, workers: [%[6]q], worker_identity: %[7]q}]\n",
		dir, metrics, files.Cert, files.Key, files.CA, c.Addrs()[0], cryptotest.WorkerURI)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	logs := new(strings.Builder)
	cmd := exec.Command(os.Args[0], "--config", conf)
	cmd.Env = append(os.Environ(), "PNO_TEST_HOSTD=1")
	cmd.Stderr = logs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill() }()

	sock := filepath.Join(dir, "keys")
	conn := dialAgent(t, sock, logs)
	if info, err := os.Stat(sock); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket's mode is %v, %v", info.Mode(), err)
	}
	if m, ok := exchange(t, conn, agent.AppendHello(nil, uint32(os.Getpid()), "test")).(*agent.Welcome); !ok {
		t.Fatalf("got %+v", m)
	}
	req := &signing.Request{Key: enginetest.Key(t, "P-256").ID, Scheme: signing.ECDSAP256SHA256, Input: signing.Digest, Data: make([]byte, 32)}
	if r, ok := exchange(t, conn, agent.AppendOp(nil, 1, req, 0)).(*agent.Result); !ok || signing.Status(r.Status) != signing.OK {
		t.Fatalf("got %+v", r)
	}

	// The key agent and the admin API come up independently of each other.
	resp, err := http.Get("http://" + metrics + "/metrics")
	for deadline := time.Now().Add(10 * time.Second); err != nil; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%v\n%s", err, logs)
		}
		resp, err = http.Get("http://" + metrics + "/metrics")
	}
	defer resp.Body.Close()
	said, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`pno_agent_operations_total{status="ok"} 1`, `pno_agent_tier_operations_total{tier="here"} 1`, "pno_host_sessions "} {
		if !strings.Contains(string(said), want) {
			t.Errorf("no %s among the metrics", want)
		}
	}
	g, err := grpc.NewClient("unix://"+filepath.Join(dir, "admin"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	health := func() healthpb.HealthCheckResponse_ServingStatus {
		r, err := healthpb.NewHealthClient(g).Check(t.Context(), &healthpb.HealthCheckRequest{Service: agentHealth}, grpc.WaitForReady(true))
		if err != nil {
			t.Fatal(err)
		}
		return r.Status
	}
	awaitHealth := func(want healthpb.HealthCheckResponse_ServingStatus) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); health() != want; time.Sleep(50 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("health is not %v\n%s", want, logs)
			}
		}
	}
	awaitHealth(healthpb.HealthCheckResponse_SERVING)
	c.Workers[0].Server.Close()
	awaitHealth(healthpb.HealthCheckResponse_NOT_SERVING)

	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", cmd.Process.Pid))
	if err != nil || !strings.Contains(strings.Join(strings.Fields(string(limits)), " "), "Max core file size 0 ") {
		t.Errorf("hostd with a key agent may leave a core file: %v\n%s", err, limits)
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
	if err := cmd.Wait(); err != nil {
		t.Errorf("exit: %v\n%s", err, logs)
	}
	if _, err := os.Stat(sock); err == nil {
		t.Error("the socket of the key agent is still there")
	}
}

func dialAgent(t *testing.T, sock string, logs *strings.Builder) net.Conn {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		c, err := net.Dial("unixpacket", sock)
		if err == nil {
			t.Cleanup(func() { c.Close() })
			_ = c.SetDeadline(time.Now().Add(20 * time.Second))
			return c
		}
		if time.Now().After(deadline) {
			t.Fatalf("%v\n%s", err, logs)
		}
	}
}

// exchange sends a packet, and returns the message that comes back.
func exchange(t *testing.T, c net.Conn, packet []byte) any {
	t.Helper()
	if _, err := c.Write(packet); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, agent.MaxPacket)
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

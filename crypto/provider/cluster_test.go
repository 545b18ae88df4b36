// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pno/crypto/agent"
	"pno/crypto/client"
	"pno/crypto/cryptotest"
	"pno/crypto/engine/enginetest"
	"pno/crypto/provider/agenttest"
	"pno/crypto/signing"
)

// realAgent runs the key agent over a cluster until stop, or the test's end.
func realAgent(t *testing.T, c *cryptotest.Cluster, path string) (stop func()) {
	t.Helper()
	cluster, err := client.NewCluster(client.Config{Identity: cryptotest.Identity(t, c.CA, cryptotest.ProxyURI),
		Workers: c.Addrs(), WorkerIdentity: cryptotest.WorkerURI})
	if err != nil {
		t.Fatal(err)
	}
	cl, err := client.New(2*time.Second, cluster)
	if err != nil {
		t.Fatal(err)
	}
	a, err := agent.New(agent.Config{Sockets: []agent.Socket{{Path: path, UID: -1}}, Client: cl})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- a.Serve(ctx) }()
	return func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
		cl.Close()
	}
}

// clusterKey is a key of the cluster as agenttest has its own.
func clusterKey(t *testing.T, kind string) *agenttest.Key {
	t.Helper()
	spki, err := x509.MarshalPKIXPublicKey(enginetest.Key(t, kind).Public)
	if err != nil {
		t.Fatal(err)
	}
	cert := cryptotest.Certificate(t, kind, nil)
	return &agenttest.Key{Kind: kind, ID: signing.IDOf(spki), SPKI: spki,
		Cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]})}
}

// The whole way: provider, agent, gRPC, workers; while a worker signs wrongly,
// another's connections break, and the agent starts again.
func TestThroughTheCluster(t *testing.T) {
	kinds := []string{"RSA-2048", "P-256", "P-384", "Ed25519"}
	c := cryptotest.New(t, 2, cryptotest.AllowAll, kinds...)
	path := filepath.Join(t.TempDir(), "agent.sock")
	stop := realAgent(t, c, path)
	defer func() { stop() }()
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			k := clusterKey(t, kind)
			s := serve(t, &agenttest.Agent{Path: path}, k, "async")
			handshakes := func(what string) {
				t.Helper()
				for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
					cfg := clientConfig(k, version)
					cfg.ServerName = "pno.test"
					if err := s.get(cfg); err != nil {
						t.Fatalf("%s: %s: %v\n%s", what, tls.VersionName(version), err, s.stop())
					}
				}
			}
			handshakes("all is well")
			c.Workers[0].Fault.Wrong(true)
			handshakes("a worker signs wrongly")
			c.Workers[0].Fault.Clear()
			c.Workers[1].Link.Break()
			handshakes("connections break")
			stop()
			stop = realAgent(t, c, path)
			handshakes("a new agent")
		})
	}
}

// A rule for TLS 1.3 only holds for keys that are given out for anything: their
// TLS 1.3 handshakes work, and nothing else does.
func TestRuleForTLS13Only(t *testing.T) {
	kinds := []string{"RSA-2048", "P-256", "P-384", "Ed25519"}
	c := cryptotest.New(t, 1, "rules:\n- {clients: [\""+cryptotest.ProxyURI+"\"], keys: [\"*\"], tls13_only: true}\n", kinds...)
	path := filepath.Join(t.TempDir(), "agent.sock")
	defer realAgent(t, c, path)()
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			k := clusterKey(t, kind)
			s := serve(t, &agenttest.Agent{Path: path}, k, "async")
			for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
				cfg := clientConfig(k, version)
				cfg.ServerName = "pno.test"
				if err := s.get(cfg); (err == nil) != (version == tls.VersionTLS13) {
					t.Errorf("%s: %v", tls.VersionName(version), err)
				}
			}
			if out := s.stop(); !strings.Contains(out, "not allowed by the access rules") {
				t.Errorf("no reason for the failure of TLS 1.2 in\n%s", out)
			}
		})
	}
}

// What the access rules do not allow is not done, and the reason is told.
func TestDeniedByTheCluster(t *testing.T) {
	c := cryptotest.New(t, 1, "rules:\n- {clients: [\"spiffe://pno.test/proxy/other\"], keys: [\"*\"]}\n", "P-256")
	path := filepath.Join(t.TempDir(), "agent.sock")
	defer realAgent(t, c, path)()
	_, ref, _ := clusterKey(t, "P-256").Files(t)
	out, err := openssl(t, &agenttest.Agent{Path: path}, "req", "-new", "-key", ref, "-subj", "/CN=x")
	if err == nil || !strings.Contains(out, "not allowed by the access rules") {
		t.Errorf("%v\n%s", err, out)
	}
}

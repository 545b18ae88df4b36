// SPDX-License-Identifier: Apache-2.0

package client_test

import (
	"testing"
	"time"

	"pno/crypto/client"
	"pno/crypto/cryptotest"
	"pno/crypto/engine/enginetest"
	"pno/crypto/signing"
)

// signer makes a client of a cluster, and a remote key of it.
func signer(t testing.TB, c *cryptotest.Cluster, kind string) (*client.Signer, *client.Cluster) {
	t.Helper()
	// Time and attempts for a machine that is so busy that a good worker may
	// stall, too.
	cluster := connect(t, c, func(cfg *client.Config) { cfg.Eject, cfg.Attempts, cfg.Wait = 300*time.Millisecond, 8, 10*time.Second })
	cl, err := client.New(20*time.Second, cluster)
	if err != nil {
		t.Fatal(err)
	}
	s, err := cl.Signer(enginetest.Key(t, kind).Public)
	if err != nil {
		t.Fatal(err)
	}
	return s, cluster
}

// Under a steady load of handshakes no fault of a worker may make one fail,
// while one good worker is reachable.
func TestFaultsUnderLoad(t *testing.T) {
	if testing.Short() {
		t.Skip("some seconds of load")
	}
	const kind, long = "RSA-2048", 400 * time.Millisecond
	c := cryptotest.New(t, 3, cryptotest.AllowAll, kind)
	s, cluster := signer(t, c, kind)
	load := cryptotest.StartLoad(t, cryptotest.Certificate(t, kind, s), 6, 5*time.Millisecond)
	defer load.Stop()
	a, b := c.Workers[0], c.Workers[1]

	load.Phase(t, "quiet", long)
	a.Fault.Wrong(true)
	load.Phase(t, "wrong signatures", long)
	for deadline := time.Now().Add(20 * time.Second); cluster.Stats().Wrong == 0 && time.Now().Before(deadline); {
		time.Sleep(5 * time.Millisecond) // no signature of that worker yet
	}
	a.Fault.Clear()
	load.Phase(t, "and right again", long)
	a.Fault.Stall()
	load.Phase(t, "one stalled", 3*long)
	a.Fault.Clear()
	a.Fault.Delay(50 * time.Millisecond)
	load.Phase(t, "one slow", long)
	a.Fault.Clear()
	a.Link.Cut()
	load.Phase(t, "one behind a partition", 3*long)
	b.Link.Cut()
	load.Phase(t, "two behind a partition", 3*long)
	a.Link.Mend()
	b.Link.Mend()
	load.Phase(t, "mended", long)
	b.Link.Break()
	load.Phase(t, "connections reset", long)
	t.Logf("%+v", cluster.Stats())
	if cluster.Stats().Wrong == 0 {
		t.Error("no wrong signature was ever noticed")
	}
}

// A cluster all of whose workers are bad is not given a multiple of its load.
func TestRetriesAreBounded(t *testing.T) {
	const ops = 600
	c := cryptotest.New(t, 3, cryptotest.AllowAll, "P-256")
	cl := connect(t, c, func(cfg *client.Config) { cfg.Eject = time.Millisecond })
	if _, err := cl.Do(soon(), opFor(t, "P-256", signing.ECDSAP256SHA256)); err != nil {
		t.Fatal(err)
	}
	for _, w := range c.Workers {
		w.Fault.Wrong(true)
	}
	start := time.Now()
	for range ops {
		if _, err := cl.Do(soon(), opFor(t, "P-256", signing.ECDSAP256SHA256)); err == nil {
			t.Fatal("a wrong signature was taken")
		}
	}
	s := cl.Stats()
	allowed := 128 + 0.2*ops + 20*time.Since(start).Seconds() + 1
	t.Logf("%d operations: %d retries and %d hedges, %.0f allowed; %d not allowed", ops, s.Retries, s.Hedges, allowed, s.OverBudget)
	if float64(s.Retries+s.Hedges) > allowed || s.OverBudget == 0 || s.Retries == 0 {
		t.Errorf("%+v", s)
	}
}

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"pno/crypto/cryptotest"
	"pno/crypto/keystore"
	"pno/crypto/provider/agenttest"
	"pno/internal/netns"
)

// tierLab is HAProxy with a key agent of its own that has two clusters, of one
// worker each, and whatever else its settings say.
type tierLab struct {
	clusterLab
	first, second *cryptotest.Worker
	keyAgent      *proc
}

func newTierLab(t *testing.T, kind string) *tierLab {
	t.Helper()
	dir := workDir(t)
	l := &tierLab{clusterLab: clusterLab{tlsLab: tlsLab{t: t, dir: dir, ns: netns.New(t, "tls"), addr: tlsAddr,
		agent: &agenttest.Agent{Path: filepath.Join(dir, "keys.sock")}, more: []string{"PNO_AGENT_TIMEOUT_MS=25000"}},
		cluster: cryptotest.New(t, 2, cryptotest.AllowAll, kind), metrics: cryptotest.FreeAddr(t)}}
	l.first, l.second = l.cluster.Workers[0], l.cluster.Workers[1]
	return l
}

// startAgent starts the key agent, in place of the former.
func (l *tierLab) startAgent(tiers string) {
	l.t.Helper()
	if l.keyAgent != nil {
		l.keyAgent.kill9()
	}
	files := l.cluster.CA.Issue(l.t, cryptotest.ProxyURI, time.Hour)
	l.write("agent.yaml", fmt.Appendf(nil, "metrics: %q\nagent:\n  listen: [{path: %s, user: haproxy}]\n  tls: {cert: %s, key: %s, ca: %s}\n  timeout: 20s\n%s",
		l.metrics, l.agent.Path, files.Cert, files.Key, files.CA, tiers))
	l.keyAgent = spawn(l.t, l.dir, "key-agent", nil, []string{binary(l.t, "cryptod"), "agent", "--config", l.path("agent.yaml")}, spawnOptions{dies: true})
	l.await("the key agent", func() bool {
		c, err := net.Dial("unixpacket", l.agent.Path)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

// used is how many operations a tier of the agent has done.
func (l *tierLab) used(tier string) float64 {
	l.t.Helper()
	return l.metric(fmt.Sprintf("pno_agent_tier_operations_total{tier=%q}", tier))
}

// by waits until the tier does operations of the load that goes on.
func (l *tierLab) by(tier string) {
	l.t.Helper()
	before := l.used(tier)
	if !poll(30*time.Second, func() bool { return l.used(tier) >= before+20 }) {
		l.t.Errorf("tier %s is not used: %v operations before, %v now", tier, before, l.used(tier))
	}
}

// Behind one partition after the other, each tier does what the one before
// cannot, under a steady load: no handshake fails while there is one. Without
// any, they fail, and work again when a cluster is back.
func TestTLSClusterGone(t *testing.T) {
	const kind, clients = "RSA-2048", 4
	l := newTierLab(t, kind)
	copies, dir, kek := cryptotest.NewStore(t)
	sealed := cryptotest.Import(t, copies, kind, keystore.Options{Name: "copy", Expires: time.Now().Add(time.Hour)})
	cluster := func(name string, w *cryptotest.Worker) string {
		return fmt.Sprintf("    - {name: %s, workers: [%q], worker_identity: %q}\n", name, w.Link.Addr(), cryptotest.WorkerURI)
	}
	l.startAgent("  clusters:\n" + cluster("here", l.first) + cluster("there", l.second) +
		fmt.Sprintf("  local: {dir: %s, kek: %q, idle: 200ms}\n", dir, kek))
	k := l.key(kind)
	p := l.haproxy(tlsHAProxy{Cert: l.exported(k)})
	cfg := trustingCluster(tls.VersionTLS13, k)
	l.waitServing(p, cfg)

	l.during("two clusters and sealed copies", clients, cfg, func() { l.by("here") })
	l.during("the first cluster is gone", clients, cfg, func() {
		l.first.Link.Cut()
		l.by("there")
	})
	l.during("so is the second", clients, cfg, func() {
		l.second.Link.Cut()
		l.by("local")
	})
	l.during("sealed copies alone", clients, cfg, func() { l.by("local") })
	l.during("the first is back", clients, cfg, func() {
		l.first.Link.Mend()
		l.by("here")
	})

	// No tier is left: the handshake fails, and HAProxy goes on.
	if err := os.Remove(sealed.Path); err != nil {
		t.Fatal(err)
	}
	l.first.Link.Cut()
	if !poll(60*time.Second, func() bool {
		c, err := l.dial(cfg)
		if err == nil {
			c.Close()
		}
		return err != nil
	}) {
		t.Error("handshakes work without any tier")
	}
	h := l.loadFor(time.Second, clients, cfg)
	t.Logf("no tier at all: %v, %v", h, h.firstErr)
	if h.failed == 0 || p.ended() {
		t.Errorf("HAProxy has ended: %v", p.ended())
	}
	l.first.Link.Mend()
	l.second.Link.Mend()
	l.waitBack(cfg)
	l.during("the clusters are back", clients, cfg, func() { l.by("here") })
}

// Every worker is gone, and back before the agent's patience ends: no handshake
// fails, without any fallback.
func TestTLSClusterAllGone(t *testing.T) {
	const kind, clients = "RSA-2048", 4
	l := newTierLab(t, kind)
	l.startAgent(fmt.Sprintf("  clusters:\n    - {name: here, workers: [%q, %q], worker_identity: %q, wait: 15s}\n",
		l.first.Link.Addr(), l.second.Link.Addr(), cryptotest.WorkerURI))
	k := l.key(kind)
	p := l.haproxy(tlsHAProxy{Cert: l.exported(k)})
	cfg := trustingCluster(tls.VersionTLS13, k)
	l.waitServing(p, cfg)
	l.during("two workers", clients, cfg, func() { time.Sleep(300 * time.Millisecond) })
	l.during("both behind a partition for 1.5 s", clients, cfg, func() {
		l.first.Link.Cut()
		l.second.Link.Cut()
		time.Sleep(1500 * time.Millisecond)
		l.first.Link.Mend()
		l.second.Link.Mend()
		l.by("here")
	})
	l.during("connections of both reset", clients, cfg, func() {
		l.first.Link.Break()
		l.second.Link.Break()
		l.by("here")
	})
}

// waitBack waits for a handshake that works.
func (l *tierLab) waitBack(cfg *tls.Config) {
	l.t.Helper()
	if !poll(30*time.Second, func() bool {
		c, err := l.dial(cfg)
		if err == nil {
			c.Close()
		}
		return err == nil
	}) {
		l.t.Error("handshakes do not work again")
	}
}

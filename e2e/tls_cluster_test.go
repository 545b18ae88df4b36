// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
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

	"pno/crypto/cryptotest"
	"pno/crypto/engine/enginetest"
	"pno/crypto/provider/agenttest"
	"pno/crypto/signing"
	"pno/internal/netns"
)

// clusterLab is a tlsLab whose keys are in a cluster: the key agent is the one
// inside hostd, a process; two workers are in the test process, where they can be
// told to misbehave and their links cut, and one is a process to be killed.
type clusterLab struct {
	tlsLab
	cluster *cryptotest.Cluster
	hostd   *proc
	worker  *proc
	port    string // of the worker that is a process
	metrics string // where the agent's are
}

func newClusterLab(t *testing.T, kinds ...string) *clusterLab {
	t.Helper()
	return newClusterLabAt(t, workDir(t), netns.New(t, "tls"), tlsAddr, cryptotest.AllowAll, kinds...)
}

// newClusterLabAt is newClusterLab in a place that is there already.
func newClusterLabAt(t *testing.T, dir string, ns *netns.NS, addr, rules string, kinds ...string) *clusterLab {
	t.Helper()
	l := &clusterLab{tlsLab: tlsLab{t: t, dir: dir, ns: ns, addr: addr, agent: &agenttest.Agent{Path: filepath.Join(dir, "keys.sock")},
		more: []string{"PNO_AGENT_TIMEOUT_MS=25000"}}, // a busy machine starts an agent slowly
		cluster: cryptotest.New(t, 2, rules, kinds...), metrics: cryptotest.FreeAddr(t)}
	l.port = cryptotest.FreeAddr(t)
	files := l.cluster.CA.Issue(t, "spiffe://pno.test/cryptod/process", time.Hour)
	l.write("acl.yaml", []byte(rules))
	l.write("cryptod.yaml", fmt.Appendf(nil, "name: process\nlisten: %q\ntls: {cert: %s, key: %s, ca: %s}\nacl: %s\nkeys: {dir: %s, kek: %q}\naudit: {path: %s}\nmetrics: none\n",
		l.port, files.Cert, files.Key, files.CA, l.path("acl.yaml"), l.cluster.Dir, l.cluster.KEK, l.path("audit")))
	l.startWorker()

	files = l.cluster.CA.Issue(t, cryptotest.ProxyURI, time.Hour)
	l.write("keys.yaml", fmt.Appendf(nil, `listen: %[1]s/attach.sock
dpu: %[1]s/no-dpu.sock
admin: %[1]s/keys-admin.sock
metrics: %[10]q
state: none
agent:
  listen: [{path: %[2]s, user: haproxy}, {path: %[2]s.nginx, user: www-data}]
  tls: {cert: %[3]s, key: %[4]s, ca: %[5]s}
  timeout: 20s
  clusters:
    - {name: here, workers: [%[6]q, %[7]q, %[8]q], worker_identity: %[9]q, eject: 1s}
`, l.dir, l.agent.Path, files.Cert, files.Key, files.CA, l.cluster.Addrs()[0], l.cluster.Addrs()[1], l.port, cryptotest.WorkerURI, l.metrics))
	l.startHostd()
	return l
}

// metric is what the agent counts as name{labels}.
func (l *clusterLab) metric(name string) (n float64) {
	l.t.Helper()
	resp, err := http.Get("http://" + l.metrics + "/metrics")
	if err != nil {
		l.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		l.t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			if _, err := fmt.Sscan(rest, &n); err != nil {
				l.t.Fatal(err)
			}
		}
	}
	return n
}

func (l *clusterLab) startWorker() {
	l.t.Helper()
	l.worker = spawn(l.t, l.dir, "worker", nil, []string{binary(l.t, "cryptod"), "--config", l.path("cryptod.yaml")}, spawnOptions{dies: true})
	l.await("the worker", func() bool {
		c, err := net.Dial("tcp", l.port)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

func (l *clusterLab) startHostd() {
	l.t.Helper()
	l.hostd = spawn(l.t, l.dir, "keys", nil, []string{binary(l.t, "hostd"), "--config", l.path("keys.yaml")}, spawnOptions{dies: true})
	l.await("the key agent", func() bool {
		c, err := net.Dial("unixpacket", l.agent.Path)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

func (l *clusterLab) await(what string, there func() bool) {
	l.t.Helper()
	if !poll(30*time.Second, there) {
		l.t.Fatalf("%s does not come up", what)
	}
}

// key is a key of the cluster, with a certificate for it.
func (l *clusterLab) key(kind string) *agenttest.Key {
	l.t.Helper()
	spki, err := x509.MarshalPKIXPublicKey(enginetest.Key(l.t, kind).Public)
	if err != nil {
		l.t.Fatal(err)
	}
	return &agenttest.Key{Kind: kind, ID: signing.IDOf(spki), SPKI: spki,
		Cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cryptotest.Certificate(l.t, kind, nil).Certificate[0]})}
}

func trustingCluster(version uint16, keys ...*agenttest.Key) *tls.Config {
	cfg := trusting(version, keys...)
	cfg.ServerName = "pno.test"
	return cfg
}

// exported is what `cryptod keys export-public --pem` gives a proxy for a key,
// behind the certificate.
func (l *clusterLab) exported(k *agenttest.Key) string {
	l.t.Helper()
	ref, err := exec.Command(binary(l.t, "cryptod"), "keys", "export-public", k.Kind, "--pem", "--dir", l.cluster.Dir).Output()
	if err != nil {
		l.t.Fatal(err)
	}
	return l.write(k.Kind+".pem", append(append([]byte{}, k.Cert...), ref...))
}

// Whatever happens to one worker, or to the agent, no handshake of HAProxy fails
// while a good worker is reachable.
func TestTLSClusterFaults(t *testing.T) {
	l := newClusterLab(t, "RSA-2048", "P-256")
	rsa, ecdsa := l.key("RSA-2048"), l.key("P-256")
	file := l.exported(rsa)
	p := l.haproxy(tlsHAProxy{Master: true, Cert: file})
	cfg := trustingCluster(tls.VersionTLS13, rsa, ecdsa)
	l.waitServing(p, cfg)
	const clients = 4
	a, b := l.cluster.Workers[0], l.cluster.Workers[1]
	for _, event := range []struct {
		what string
		do   func()
	}{
		{"nothing", func() { time.Sleep(300 * time.Millisecond) }},
		{"kill -9 of a worker of three", func() {
			l.worker.kill9()
			time.Sleep(700 * time.Millisecond)
			l.startWorker()
		}},
		{"a worker stalls (SIGSTOP)", func() {
			l.worker.signal(syscall.SIGSTOP)
			time.Sleep(1500 * time.Millisecond)
			l.worker.signal(syscall.SIGCONT)
		}},
		{"a worker signs wrongly", func() {
			a.Fault.Wrong(true)
			time.Sleep(700 * time.Millisecond)
			a.Fault.Clear()
		}},
		{"two of three behind a partition", func() {
			a.Link.Cut()
			b.Link.Cut()
			time.Sleep(1500 * time.Millisecond)
			a.Link.Mend()
			b.Link.Mend()
		}},
		{"kill -9 of the agent", func() {
			l.hostd.kill9()
			time.Sleep(100 * time.Millisecond)
			l.startHostd()
		}},
		{"set ssl cert", func() {
			both, err := os.ReadFile(l.exported(ecdsa))
			if err != nil {
				t.Error(err)
			}
			out := l.command(fmt.Sprintf("set ssl cert %s <<\n%s\n", file, both)) + l.command("commit ssl cert "+file)
			if !strings.Contains(out, "Success") {
				t.Errorf("set ssl cert: %s", out)
			}
		}},
		{"USR2", func() {
			p.signal(syscall.SIGUSR2)
			if !poll(30*time.Second, func() bool { return strings.Count(p.logText(), "Loading success") >= 2 }) {
				t.Error("the reload does not finish")
			}
		}},
	} {
		l.during(event.what, clients, cfg, event.do)
	}
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		l.exchange(trustingCluster(version, rsa))
	}
	l.programs(l.addr, tls.VersionTLS12, rsa)
	l.programs(l.addr, tls.VersionTLS13, rsa)
}

// The proxy's TCP is in the DPU and its keys are in the cluster, at once.
func TestTLSClusterOffloaded(t *testing.T) {
	lab := newLab(t)
	l := newClusterLabAt(t, lab.dir, lab.client, servedAddr+":443", cryptotest.AllowAll, "RSA-2048")
	k := l.key("RSA-2048")
	cfg := trustingCluster(tls.VersionTLS13, k)
	p := lab.appWith("haproxy", spawnOptions{env: l.env()}, l.haproxyArgs(tlsHAProxy{Cert: l.exported(k)})...)
	l.waitServing(p, cfg)
	l.during("offloaded, a worker is killed", 8, cfg, func() {
		l.worker.kill9()
		time.Sleep(500 * time.Millisecond)
	})
	l.exchange(trustingCluster(tls.VersionTLS12, k))
}

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"pno/crypto/cryptotest"
	"pno/crypto/engine/enginetest"
)

// traces is where the secrets of a key were found.
type traces struct{ memory, core, disk bool }

// trace looks for secrets in the memory of processes, in what they would leave
// as core files, and below a folder.
func (l *clusterLab) trace(secrets [][]byte, folder string, pids ...int) (found traces) {
	l.t.Helper()
	for _, pid := range pids {
		found.memory = found.memory || cryptotest.InMemory(l.t, pid, secrets)
		dir := l.t.TempDir()
		if out, err := exec.Command("gcore", "-o", filepath.Join(dir, "core"), fmt.Sprint(pid)).CombinedOutput(); err != nil {
			l.t.Fatalf("gcore %d: %v\n%s", pid, err, out)
		}
		cores, err := os.ReadDir(dir)
		if err != nil || len(cores) != 1 {
			l.t.Fatalf("gcore %d wrote %v, %v", pid, cores, err)
		}
		found.core = found.core || len(cryptotest.InFiles(l.t, secrets, dir)) > 0
		os.RemoveAll(dir)
	}
	hits := cryptotest.InFiles(l.t, secrets, folder)
	found.disk = len(hits) > 0
	return found
}

// Nothing of a private key is on the host of a proxy whose key is in the cluster:
// not in the memory or a core file of HAProxy, nginx or hostd, not on disk. With
// the key at hand, the same search finds it in all three.
func TestTLSClusterNoSecrets(t *testing.T) {
	l := newClusterLab(t, "RSA-2048")
	k := l.key("RSA-2048")
	secrets := cryptotest.Secrets(t, "RSA-2048")
	cfg := trustingCluster(tls.VersionTLS13, k)
	look := func(p *proc, more ...int) traces {
		t.Helper()
		l.waitServing(p, cfg)
		if h := l.loadFor(300*time.Millisecond, 4, cfg); h.failed > 0 || h.done == 0 {
			t.Fatalf("%v: %v", h, h.firstErr)
		}
		return l.trace(secrets, l.dir, append(p.family(), more...)...)
	}
	remote := l.exported(k)
	p := l.haproxy(tlsHAProxy{Master: true, Cert: remote})
	if found := look(p, l.hostd.pid()); found != (traces{}) {
		t.Errorf("HAProxy, its key in the cluster: %+v", found)
	}
	p.stop(syscall.SIGTERM, 5*time.Second)
	l.agent.Path += ".nginx" // each user has a socket of its own
	p = l.tlsNginx(1, remote)
	if found := look(p); found != (traces{}) {
		t.Errorf("nginx, its key in the cluster: %+v", found)
	}
	p.stop(syscall.SIGQUIT, 5*time.Second)

	der, err := x509.MarshalPKCS8PrivateKey(enginetest.Key(t, "RSA-2048").Signer)
	if err != nil {
		t.Fatal(err)
	}
	local := l.write("local.pem", append(slices.Clone(k.Cert), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})...))
	if found := look(l.haproxy(tlsHAProxy{Master: true, Cert: local})); found != (traces{true, true, true}) {
		t.Errorf("the search does not find a key that is there: %+v", found)
	}
}

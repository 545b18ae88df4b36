// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"crypto/tls"
	"fmt"
	"os"
	"syscall"
	"testing"
	"time"

	"pno/crypto/provider/agenttest"
)

// tlsNginx starts Debian's nginx: a root master that loads the key, and workers
// that use it. It learns of the provider through OPENSSL_CONF.
func (l *tlsLab) tlsNginx(workers int, pem string) *proc {
	l.t.Helper()
	if err := os.MkdirAll(l.path("tmp"), 0o755); err != nil {
		l.t.Fatal(err)
	}
	chownTo(l.t, l.path("tmp"), "www-data")
	conf := l.write("openssl.cnf", fmt.Appendf(nil, `openssl_conf = main
[main]
providers = providers
[providers]
default = d
pno = p
[d]
activate = 1
[p]
module = %s
agent = %s
activate = 1
`, binary(l.t, "pno.so"), l.agent.Path))
	tmp := l.path("tmp")
	nginx := l.write("nginx.conf", fmt.Appendf(nil, `daemon off;
user www-data;
worker_processes %d;
pid %s;
error_log stderr info;
events { worker_connections 1024; }
http {
  access_log off;
  client_body_temp_path %[3]s;
  proxy_temp_path %[3]s;
  fastcgi_temp_path %[3]s;
  uwsgi_temp_path %[3]s;
  scgi_temp_path %[3]s;
%[4]s
}
`, workers, l.path("nginx.pid"), tmp, l.fronts(`  server {
    listen %[1]s ssl;
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_session_tickets off;
    ssl_certificate %[2]s;
    ssl_certificate_key %[2]s;
    location / { return 200 served; }
  }`, pem)))
	return spawn(l.t, l.dir, "nginx", l.ns, []string{"nginx", "-e", "stderr", "-p", l.dir, "-c", nginx},
		spawnOptions{env: append([]string{"OPENSSL_CONF=" + conf}, l.more...)})
}

// nginx has no asynchronous handshakes, so that a worker does one handshake at a
// time and nothing else while it waits.
func TestTLSNginxBlocksAndReloads(t *testing.T) {
	k := agenttest.NewKey(t, "rsa2048")
	l := newTLSLab(t, agenttest.Faults{Latency: 20 * time.Millisecond}, k)
	p := l.tlsNginx(1, l.pem(k))
	cfg := trusting(tls.VersionTLS13, k)
	l.waitServing(p, cfg)
	h := l.loadFor(time.Second, 8, cfg)
	t.Logf("20 ms a signature, one worker: %v", h)
	if h.failed > 0 || h.done == 0 || h.rate() > 60 {
		t.Errorf("%v: %v", h, h.firstErr)
	}
	l.during("HUP and a new agent", 4, cfg, func() {
		p.signal(syscall.SIGHUP)
		time.Sleep(200 * time.Millisecond)
		l.agent.Stop()
		time.Sleep(50 * time.Millisecond)
		l.startAgent()
	})
	p.stop(syscall.SIGQUIT, 5*time.Second)
}

// What happens to a worker, or to the agent, fails no handshake of nginx either,
// whose workers wait meanwhile.
func TestTLSClusterNginx(t *testing.T) {
	l := newClusterLab(t, "RSA-2048")
	l.agent.Path += ".nginx" // each user has a socket of its own
	k := l.key("RSA-2048")
	cfg := trustingCluster(tls.VersionTLS13, k)
	p := l.tlsNginx(2, l.exported(k))
	l.waitServing(p, cfg)
	const clients = 4
	l.during("kill -9 of a worker of three", clients, cfg, func() {
		l.worker.kill9()
		time.Sleep(500 * time.Millisecond)
		l.startWorker()
	})
	l.during("two of three behind a partition", clients, cfg, func() {
		l.cluster.Workers[0].Link.Cut()
		l.cluster.Workers[1].Link.Cut()
		time.Sleep(1500 * time.Millisecond)
		l.cluster.Workers[0].Link.Mend()
		l.cluster.Workers[1].Link.Mend()
	})
	l.during("kill -9 of the agent, and HUP", clients, cfg, func() {
		l.hostd.kill9()
		time.Sleep(100 * time.Millisecond)
		l.startHostd()
		p.signal(syscall.SIGHUP)
		time.Sleep(300 * time.Millisecond)
	})
	p.stop(syscall.SIGQUIT, 10*time.Second)
}

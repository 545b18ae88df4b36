// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"pno/crypto/client"
	"pno/crypto/cryptotest"
	"pno/crypto/provider/agenttest"
	"pno/internal/netns"
)

// tlsKinds are the types of certificate that every server is tried with.
var tlsKinds = []string{"RSA-2048", "RSA-3072", "RSA-4096", "P-256", "P-384", "Ed25519"}

// Every type of key, both versions of TLS, each of the servers, each of the
// clients; the keys are in the cluster. HAProxy's providers are named in both
// orders. TLS-RSA works with the one key whose rule allows decryption.
func TestTLSClusterKeys(t *testing.T) {
	const decrypts = "RSA-2048"
	rules := strings.Replace(cryptotest.AllowAll, "rules:\n", "rules:\n- {clients: [\""+cryptotest.ProxyURI+"\"], keys: ["+decrypts+"], tls12_premaster: true}\n", 1)
	l := newClusterLabAt(t, workDir(t), netns.New(t, "tls"), tlsAddr, rules, tlsKinds...)
	var keys []*agenttest.Key
	var fronts []front
	for i, kind := range tlsKinds {
		k := l.key(kind)
		keys, fronts = append(keys, k), append(fronts, front{fmt.Sprintf("127.0.0.1:%d", 8443+i), l.exported(k)})
	}
	l.also = fronts[1:]
	const ok = `pno_agent_operations_total{status="ok"}`
	all := func(t *testing.T, decrypt bool) {
		begun, before := time.Now(), l.metric(ok)
		for i, k := range keys {
			l.addr = fronts[i].addr
			for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
				l.exchange(trustingCluster(version, k))
				// Keys of the key exchange are of the type EC, too, like some of the provider's.
				nist := trustingCluster(version, k)
				nist.CurvePreferences = []tls.CurveID{tls.CurveP256, tls.CurveP384}
				l.exchange(nist)
				l.programs(l.addr, version, k)
			}
		}
		if decrypt {
			// One operation a handshake, and four clients.
			if n, want := l.metric(ok)-before, float64(len(keys)*2*4); n != want {
				t.Errorf("%v operations in the cluster, want %v", n, want)
			}
			l.keyExchange(fronts[0].addr, keys[0], true)
			l.keyExchange(fronts[1].addr, keys[1], false)
		}
		l.addr = fronts[0].addr
		t.Logf("%d keys, 2 versions, 4 clients: %v", len(keys), time.Since(begun).Round(time.Millisecond))
	}
	proxy := func(start func() *proc, stop syscall.Signal) func(*testing.T) {
		return func(t *testing.T) {
			l.t = t
			p := start()
			l.waitServing(p, trustingCluster(tls.VersionTLS13, keys[0]))
			all(t, true)
			p.stop(stop, 10*time.Second)
		}
	}
	t.Run("haproxy", proxy(func() *proc { return l.haproxy(tlsHAProxy{Cert: fronts[0].pem}) }, syscall.SIGUSR1))
	t.Run("haproxy-last", proxy(func() *proc { return l.haproxy(tlsHAProxy{Cert: fronts[0].pem, Last: true}) }, syscall.SIGUSR1))
	t.Run("go", func(t *testing.T) {
		l.t = t
		l.serveGo(t, keys, fronts)
		all(t, false)
	})
	l.agent.Path += ".nginx" // each user has a socket of its own
	t.Run("nginx", proxy(func() *proc { return l.tlsNginx(2, fronts[0].pem) }, syscall.SIGQUIT))
}

// serveGo serves the keys with crypto/tls until the test ends.
func (l *clusterLab) serveGo(t *testing.T, keys []*agenttest.Key, fronts []front) {
	t.Helper()
	cluster, err := client.NewCluster(client.Config{Identity: cryptotest.Identity(t, l.cluster.CA, cryptotest.ProxyURI),
		Workers: append(l.cluster.Addrs(), l.port), WorkerIdentity: cryptotest.WorkerURI})
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.New(20*time.Second, cluster)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	s := &http.Server{ErrorLog: log.New(io.Discard, "", 0), Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "served")
	})}
	t.Cleanup(func() { s.Close() })
	for i, k := range keys {
		block, _ := pem.Decode(k.Cert)
		leaf, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		key, err := c.Signer(leaf.PublicKey)
		if err != nil {
			t.Fatal(err)
		}
		lis, err := l.ns.Listen("tcp", fronts[i].addr)
		if err != nil {
			t.Fatal(err)
		}
		go s.Serve(tls.NewListener(lis, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{leaf.Raw}, PrivateKey: key}}})) //nolint:errcheck // Close ends it
	}
}

// programs are other clients.
func (l *clusterLab) programs(addr string, version uint16, k *agenttest.Key) {
	l.t.Helper()
	roots := l.write("roots.pem", k.Cert)
	v := map[uint16]string{tls.VersionTLS12: "1.2", tls.VersionTLS13: "1.3"}[version]
	for _, tool := range []struct{ args, want string }{
		{"curl -sS --tlsv" + v + " --tls-max " + v + " --cacert " + roots + " --connect-to pno.test:443:" + addr + " https://pno.test/", "served"},
		{"openssl s_client -tls" + strings.Replace(v, ".", "_", 1) + " -connect " + addr + " -servername pno.test -CAfile " + roots + " -verify_return_error -brief", "Verification: OK"},
	} {
		if out := l.ns.Run("sh", "-c", tool.args+" 2>&1 </dev/null"); !strings.Contains(out, tool.want) {
			l.t.Errorf("%s:\n%s", tool.args, out)
		}
	}
}

// keyExchange is TLS-RSA, where the worker decrypts.
func (l *clusterLab) keyExchange(addr string, k *agenttest.Key, allowed bool) {
	l.t.Helper()
	cfg := trustingCluster(tls.VersionTLS12, k)
	cfg.CipherSuites = []uint16{tls.TLS_RSA_WITH_AES_128_GCM_SHA256}
	l.addr = addr
	c, err := l.dial(cfg)
	if err == nil {
		c.Close()
	}
	if (err == nil) != allowed {
		l.t.Errorf("TLS-RSA with %s: %v", k.Kind, err)
	}
}

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// quicServer is Debian's ngtcp2 example server, HTTP/3 over gnutls, with the
// bodies of the tests: the arguments.
func quicServer(l *lab, addr, port string) []string {
	l.t.Helper()
	key, cert := l.path("quic.key"), l.path("quic.pem")
	l.mustClientRun(20*time.Second, "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
		"-nodes", "-keyout", key, "-out", cert, "-subj", "/CN=pno.test", "-days", "2")
	return []string{"/usr/sbin/gtlsserver", "--quiet", "--htdocs=" + testSite(l.t).root, addr, port, key, cert}
}

// quicFetch is its client: it writes a body to the lab's directory.
func quicFetch(l *lab, addr, port, name string) []string {
	return []string{"gtlsclient", "--quiet", "--timeout=5s", "--exit-on-all-streams-close", "--download=" + l.dir,
		addr, port, "https://" + net.JoinHostPort(addr, port) + "/" + name}
}

// fetched runs a client again and again until the server is there, and then
// compares what it got.
func (l *lab) fetched(name string, client func() (string, error)) {
	l.t.Helper()
	o := testSite(l.t).objects[name]
	got := filepath.Join(l.dir, name)
	var out string
	var err error
	ok := poll(60*time.Second, func() bool {
		out, err = client()
		st, missing := os.Stat(got)
		return err == nil && missing == nil && st.Size() == o.Size
	})
	if !ok {
		l.diagnose()
		l.t.Fatalf("/%s: %v\n%s", name, err, out)
	}
	if sum := fileSum(l.t, got); sum != o.Sum {
		l.t.Errorf("/%s has sum %s, not %s", name, sum, o.Sum)
	}
	_ = os.Remove(got)
}

// checkDatagrams proves that UDP sockets were offloaded, and none left to the
// kernel.
func (l *lab) checkDatagrams() {
	l.t.Helper()
	l.checkOffloaded()
	if l.mode != modeOffload {
		return
	}
	h := l.stats(l.conf.hostdAdmin).GetHost()
	var datagrams, kernel uint64
	for _, c := range h.GetShim() {
		if c.GetName() == "sockets_udp" {
			datagrams = c.GetValue()
		}
	}
	for _, n := range h.GetSockets().GetKernel() {
		kernel += n
	}
	if datagrams == 0 || kernel != 0 {
		l.t.Errorf("%d datagram sockets were offloaded, want some; %d sockets left to the kernel, want none", datagrams, kernel)
	}
}

// knowsAddress lets the kernel of the host have the DPU's address, on its
// loopback: the client asks it for a route before it opens its socket.
func (l *lab) knowsAddress() {
	l.t.Helper()
	if l.mode == modeOffload {
		l.host.AddrAdd("lo", servedAddr+"/32")
		l.host.Run("ip", "route", "add", "198.18.0.0/24", "dev", "lo", "src", servedAddr)
	}
}

// TestQUIC moves bodies over HTTP/3, with the server, the client, or both of
// them on the DPU.
func TestQUIC(t *testing.T) {
	fetch := func(l *lab, addr, port, name string, offloaded bool) {
		argv := quicFetch(l, addr, port, name)
		l.fetched(name, func() (string, error) {
			if offloaded {
				return l.runApp("gtlsclient", 60*time.Second, argv...)
			}
			return l.clientRun(60*time.Second, argv...)
		})
	}
	t.Run("server", func(t *testing.T) {
		l := newShardedLab(t, 2)
		l.app("gtlsserver", quicServer(l, servedAddr, "4433")...)
		for _, name := range []string{"1k", "1m", "16m"} {
			fetch(l, servedAddr, "4433", name, false)
		}
		l.checkDatagrams()
	})
	t.Run("client", func(t *testing.T) {
		l := newLab(t)
		l.knowsAddress()
		spawn(t, l.dir, "gtlsserver", l.backend, quicServer(l, backendAddr, "4433"), spawnOptions{})
		for _, name := range []string{"1k", "16m"} {
			fetch(l, backendAddr, "4433", name, true)
		}
		l.checkDatagrams()
	})
	t.Run("both", func(t *testing.T) {
		l := newLab(t)
		l.knowsAddress()
		l.app("gtlsserver", quicServer(l, servedAddr, "4433")...)
		fetch(l, servedAddr, "4433", "16m", true)
		l.checkDatagrams()
	})
}

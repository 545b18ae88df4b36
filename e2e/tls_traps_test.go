// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"crypto/tls"
	"io"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"

	"pno/crypto/provider/agenttest"
)

// Each of these tests falls into its trap first, where that can be done, so that
// it is known to be there.

// bug is what HAProxy says when it ends itself.
const bug = "FATAL: bug condition"

// Trap: a job that has set a descriptor must pause, even if its answer is there
// already. HAProxy ends itself otherwise, as it does here when pausing is taken
// from the provider. Two threads, answers without delay.
func TestTLSHAProxyTrapPause(t *testing.T) {
	k := agenttest.NewKey(t, "p256")
	l := newTLSLab(t, agenttest.Faults{}, k)
	cfg := trusting(tls.VersionTLS13, k)
	args := l.haproxyArgs(tlsHAProxy{Threads: 2, Cert: l.pem(k)})
	t.Run("without", func(t *testing.T) {
		preload := l.path("nopause.so")
		if out, err := exec.Command("cc", "-shared", "-fPIC", "-o", preload, "testdata/nopause.c").CombinedOutput(); err != nil {
			t.Fatalf("build nopause.so: %v\n%s", err, out)
		}
		p := spawn(t, l.dir, "haproxy-nopause", l.ns, args, spawnOptions{env: append(l.env(), "LD_PRELOAD="+preload), dies: true})
		if !poll(60*time.Second, func() bool {
			l.loadFor(50*time.Millisecond, 16, cfg)
			return p.ended()
		}) || !strings.Contains(p.logText(), bug) {
			t.Errorf("HAProxy lives without the pause:\n%s", tail(p.logText(), 20))
		}
	})
	p := spawn(t, l.dir, "haproxy", l.ns, args, spawnOptions{env: l.env()})
	l.waitServing(p, cfg)
	h := l.loadFor(2*time.Second, 16, cfg)
	t.Logf("no delay, nbthread 2: %v", h)
	if h.failed > 0 || h.done < 100 {
		t.Errorf("%v: %v", h, h.firstErr)
	}
}

// Trap: each connection holds a third descriptor, beside its own and that of its
// server, which HAProxy does not count with a provider. When maxconn is the peak
// it ends itself; with twice the peak there is room.
func TestTLSHAProxyTrapMaxconn(t *testing.T) {
	const peak = 60
	for name, maxconn := range map[string]int{"peak": peak, "twice the peak": 2 * peak} {
		t.Run(name, func(t *testing.T) {
			k := agenttest.NewKey(t, "p256")
			l := newTLSLab(t, agenttest.Faults{}, k)
			far := l.server()
			p := spawn(t, l.dir, "haproxy", l.ns, l.haproxyArgs(tlsHAProxy{Backend: far, Maxconn: maxconn, Cert: l.pem(k)}),
				spawnOptions{env: l.env(), dies: true})
			cfg := trusting(tls.VersionTLS13, k)
			l.waitServing(p, cfg)
			// Half of the connections have all three. The others are accepted before the
			// first of them asks for a signature, so that what runs out runs out there:
			// elsewhere HAProxy looks.
			l.hold(peak/2, cfg)
			var rest []net.Conn
			for range peak / 2 {
				c, err := l.ns.DialContext(t.Context(), "tcp", l.addr)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				rest = append(rest, c)
			}
			if !poll(30*time.Second, func() bool { return p.usage().fds >= 2*peak }) {
				t.Fatalf("connections are not accepted: %v", p.usage())
			}
			done := make(chan error, len(rest))
			for _, c := range rest {
				go func() { done <- served(tls.Client(c, cfg)) }()
			}
			var failed error
			for range rest {
				if err := <-done; err != nil {
					failed = err
				}
			}
			t.Logf("%d connections held with maxconn %d: %v", peak, maxconn, p.usage())
			if maxconn > peak {
				if failed != nil || p.ended() {
					t.Errorf("%v; HAProxy has ended: %v", failed, p.ended())
				}
				return
			}
			if !poll(30*time.Second, p.ended) || !strings.Contains(p.logText(), `"fd >= global.maxsock"`) {
				t.Errorf("HAProxy lives, the last failure: %v\n%s", failed, tail(p.logText(), 20))
			}
		})
	}
}

// server says a byte to each connection, and holds it until the test ends.
func (l *tlsLab) server() (addr string) {
	l.t.Helper()
	lis, err := l.ns.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { lis.Close() })
	go func() {
		for {
			c, err := lis.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			_, _ = c.Write([]byte("x")) // who does not get it complains
		}
	}()
	return lis.Addr().String()
}

// served does the handshake and takes the server's byte.
func served(c *tls.Conn) error {
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	_, err := io.ReadFull(c, make([]byte, 1))
	return err
}

// hold opens connections that stay until the test ends.
func (l *tlsLab) hold(n int, cfg *tls.Config) {
	l.t.Helper()
	for range n {
		c, err := l.dial(cfg)
		if err != nil {
			l.t.Fatal(err)
		}
		l.t.Cleanup(func() { c.Close() })
		if err := served(c); err != nil {
			l.t.Fatal(err)
		}
	}
}

// Trap: a client that goes away while its job is paused leaks the job's stack, in
// OpenSSL: SSL_free drops the job, which only a pool of jobs that have finished
// could free, and nobody outside of OpenSSL can reach it. It cannot be avoided from
// a provider, then, so this shows its bounds: no more than that stack leaks (the
// provider's unit test "abandoned" has the leak sanitizer look), descriptors come
// back, and handshakes go on.
func TestTLSHAProxyTrapAbort(t *testing.T) {
	const aborts = 600
	k := agenttest.NewKey(t, "p256")
	l := newTLSLab(t, agenttest.Faults{Latency: 100 * time.Millisecond}, k)
	p := l.haproxy(tlsHAProxy{Cert: l.pem(k)})
	cfg := trusting(tls.VersionTLS13, k)
	l.waitServing(p, cfg)
	before := p.usage()
	for range aborts / 20 {
		var conns []net.Conn
		ops := l.agent.Ops.Load()
		for range 20 {
			raw, err := l.ns.DialContext(t.Context(), "tcp", l.addr)
			if err != nil {
				t.Fatal(err)
			}
			conns = append(conns, raw)
			go tls.Client(raw, cfg).HandshakeContext(t.Context()) //nolint:errcheck // it is cut
		}
		if !poll(30*time.Second, func() bool { return l.agent.Ops.Load() >= ops+20 }) {
			t.Fatal("operations do not come to the agent")
		}
		for _, c := range conns {
			c.(*net.TCPConn).SetLinger(0)
			c.Close()
		}
	}
	if !poll(30*time.Second, func() bool { return p.usage().fds <= before.fds+2 }) {
		t.Errorf("descriptors do not come back: %d, %d before", p.usage().fds, before.fds)
	}
	after := p.usage()
	each := float64(after.rss-before.rss) / 1024 / aborts
	t.Logf("%d aborted handshakes: %v, %v before: %.1f KiB each", aborts, after, before, each)
	if each > 40 { // the part of a stack of 32 KiB that was used, and HAProxy's own pools
		t.Errorf("%.1f KiB for each aborted handshake: more than the stack of its job leaks", each)
	}
	l.exchange(cfg)
}

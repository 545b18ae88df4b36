// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pno/crypto/provider/agenttest"
	"pno/internal/netns"
)

// tlsAddr is where the proxies of these tests serve, on the loopback of a
// namespace of their own.
const tlsAddr = "127.0.0.1:8443"

// tlsLab is a proxy host without private keys: a stock proxy with the provider,
// and a key agent in the test process, which is also the client.
type tlsLab struct {
	t     *testing.T
	dir   string
	ns    *netns.NS // of the clients
	addr  string    // where the proxy serves
	agent *agenttest.Agent
	more  []string // of the proxy's environment
	also  []front  // that it serves
}

// front is an address of a proxy, and the file with its certificate and key.
type front struct{ addr, pem string }

func newTLSLab(t *testing.T, faults agenttest.Faults, keys ...*agenttest.Key) *tlsLab {
	t.Helper()
	return newTLSLabAt(t, workDir(t), netns.New(t, "tls"), tlsAddr, faults, keys...)
}

// newTLSLabAt is newTLSLab in a place that is there already.
func newTLSLabAt(t *testing.T, dir string, ns *netns.NS, addr string, faults agenttest.Faults, keys ...*agenttest.Key) *tlsLab {
	t.Helper()
	l := &tlsLab{t: t, dir: dir, ns: ns, addr: addr, agent: agenttest.New(t, keys...)}
	l.agent.Path = filepath.Join(l.dir, "agent.sock")
	l.agent.Faults = faults
	l.startAgent()
	return l
}

// startAgent lets the users that proxies change to speak to the agent.
func (l *tlsLab) startAgent() {
	l.t.Helper()
	l.agent.Start()
	if err := os.Chmod(l.agent.Path, 0o666); err != nil {
		l.t.Fatal(err)
	}
}

func (l *tlsLab) path(name string) string { return filepath.Join(l.dir, name) }

func (l *tlsLab) write(name string, content []byte) string {
	l.t.Helper()
	if err := os.WriteFile(l.path(name), content, 0o644); err != nil {
		l.t.Fatal(err)
	}
	return l.path(name)
}

// pem is the file that a proxy gets for a key: certificate and reference.
func (l *tlsLab) pem(k *agenttest.Key) string {
	l.t.Helper()
	return l.write(k.Kind+".pem", append(slices.Clone(k.Cert), k.Ref()...))
}

func trusting(version uint16, keys ...*agenttest.Key) *tls.Config {
	roots := x509.NewCertPool()
	for _, k := range keys {
		roots.AppendCertsFromPEM(k.Cert)
	}
	return &tls.Config{RootCAs: roots, ServerName: "localhost", MinVersion: version, MaxVersion: version}
}

// dial does one full handshake: there is no session cache.
func (l *tlsLab) dial(cfg *tls.Config) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	raw, err := l.ns.DialContext(ctx, "tcp", l.addr)
	if err != nil {
		return nil, err
	}
	c := tls.Client(raw, cfg)
	if err := c.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, err
	}
	return c, nil
}

// waitServing waits for the first handshake that works.
func (l *tlsLab) waitServing(p *proc, cfg *tls.Config) {
	l.t.Helper()
	var last error
	if !poll(30*time.Second, func() bool {
		if p.ended() {
			return true
		}
		c, err := l.dial(cfg)
		if last = err; err == nil {
			c.Close()
		}
		return err == nil
	}) || p.ended() {
		l.t.Fatalf("%s does not serve: %v\n%s", p.name, last, tail(p.logText(), 30))
	}
}

// handshakes is what a load of them came to.
type handshakes struct {
	done, failed int64
	firstErr     error
	took         time.Duration
	latency      []time.Duration // sorted
}

func (h *handshakes) rate() float64 { return float64(h.done) / h.took.Seconds() }

func (h *handshakes) percentile(p float64) time.Duration {
	if len(h.latency) == 0 {
		return 0
	}
	return h.latency[int(p*float64(len(h.latency)-1))]
}

func (h *handshakes) String() string {
	return fmt.Sprintf("%d handshakes, %d failed, %.0f/s, p50 %v, p99 %v", h.done, h.failed, h.rate(),
		h.percentile(0.5).Round(time.Millisecond/10), h.percentile(0.99).Round(time.Millisecond/10))
}

// load does full handshakes, clients of them at once, until ctx is over.
func (l *tlsLab) load(ctx context.Context, clients int, cfg *tls.Config) *handshakes {
	var h handshakes
	var mu sync.Mutex
	var wg sync.WaitGroup
	var done, failed atomic.Int64
	begun := time.Now()
	for range clients {
		wg.Go(func() {
			for ctx.Err() == nil {
				start := time.Now()
				c, err := l.dial(cfg)
				if err != nil {
					failed.Add(1)
					mu.Lock()
					if h.firstErr == nil {
						h.firstErr = err
					}
					mu.Unlock()
					continue
				}
				took := time.Since(start)
				c.NetConn().(*net.TCPConn).SetLinger(0) // ports are few
				c.NetConn().Close()
				done.Add(1)
				mu.Lock()
				h.latency = append(h.latency, took)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	h.took, h.done, h.failed = time.Since(begun), done.Load(), failed.Load()
	slices.Sort(h.latency)
	return &h
}

// loadFor is load for a time.
func (l *tlsLab) loadFor(d time.Duration, clients int, cfg *tls.Config) *handshakes {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	return l.load(ctx, clients, cfg)
}

// during runs load while fn acts on the proxy, and expects that no handshake fails.
func (l *tlsLab) during(what string, clients int, cfg *tls.Config, fn func()) {
	l.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	result := make(chan *handshakes, 1)
	go func() { result <- l.load(ctx, clients, cfg) }()
	time.Sleep(200 * time.Millisecond)
	fn()
	time.Sleep(300 * time.Millisecond)
	cancel()
	h := <-result
	l.t.Logf("%s: %v", what, h)
	if h.failed > 0 {
		l.t.Errorf("%s: %d handshakes failed: %v", what, h.failed, h.firstErr)
	}
	if h.done == 0 {
		l.t.Errorf("%s: no handshake at all", what)
	}
}

// SPDX-License-Identifier: Apache-2.0

package cryptotest

import (
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"pno/crypto/engine/enginetest"
)

// Certificate is a self-signed certificate of a test key, to be used with a
// remote key.
func Certificate(t testing.TB, kind string, key crypto.PrivateKey) tls.Certificate {
	t.Helper()
	tk := enginetest.Key(t, kind)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "pno.test"}, DNSNames: []string{"pno.test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, tk.Public, tk.Signer)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// Load is full TLS handshakes against a Go server, one after the other on some
// connections at once. The clients verify what the server signs.
type Load struct {
	lis  net.Listener
	stop chan struct{}
	done sync.WaitGroup

	mu     sync.Mutex
	took   []time.Duration
	failed []error
}

// StartLoad begins; each of the clients pauses between handshakes.
func StartLoad(t testing.TB, cert tls.Certificate, clients int, pause time.Duration) *Load {
	t.Helper()
	lis, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}, SessionTicketsDisabled: true})
	if err != nil {
		t.Fatal(err)
	}
	l := &Load{lis: lis, stop: make(chan struct{})}
	l.done.Add(1)
	go l.serve()
	for i := range clients {
		l.done.Add(1)
		go l.client(uint16(tls.VersionTLS12+i%2), pause)
	}
	return l
}

func (l *Load) serve() {
	defer l.done.Done()
	var conns sync.WaitGroup
	defer conns.Wait()
	for {
		c, err := l.lis.Accept()
		if err != nil {
			return
		}
		conns.Add(1)
		go func() {
			defer conns.Done()
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(30 * time.Second))
			if _, err := c.Write([]byte("x")); err != nil {
				l.note(0, err)
			}
		}()
	}
}

func (l *Load) client(version uint16, pause time.Duration) {
	defer l.done.Done()
	// The name is not what is tested; the signature is checked regardless.
	conf := &tls.Config{InsecureSkipVerify: true, MinVersion: version, MaxVersion: version}
	for {
		select {
		case <-l.stop:
			return
		case <-time.After(pause):
		}
		start := time.Now()
		err := func() error {
			c, err := tls.Dial("tcp", l.lis.Addr().String(), conf)
			if err != nil {
				return err
			}
			defer func() { _ = c.Close() }()
			_ = c.SetDeadline(time.Now().Add(30 * time.Second))
			// The end of the connection may come with the byte.
			if n, err := c.Read(make([]byte, 1)); n == 0 {
				return err
			}
			return nil
		}()
		l.note(time.Since(start), err)
	}
}

func (l *Load) note(took time.Duration, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.failed = append(l.failed, err)
		return
	}
	l.took = append(l.took, took)
}

// Phase runs for a while, or on a busy machine until a handshake has ended, and
// reports it: not one may fail.
func (l *Load) Phase(t testing.TB, name string, d time.Duration) {
	t.Helper()
	l.mu.Lock()
	l.took = l.took[:0]
	l.mu.Unlock()
	time.Sleep(d)
	l.mu.Lock()
	defer l.mu.Unlock()
	for deadline := time.Now().Add(30 * time.Second); len(l.took)+len(l.failed) == 0 && time.Now().Before(deadline); {
		l.mu.Unlock()
		time.Sleep(5 * time.Millisecond)
		l.mu.Lock()
	}
	slices.Sort(l.took)
	n := len(l.took)
	if n == 0 {
		t.Errorf("%s: no handshake at all", name)
		return
	}
	t.Logf("%-28s %5d handshakes, %d failed; p50 %v, p99 %v, longest %v", name, n, len(l.failed),
		l.took[n/2].Round(10*time.Microsecond), l.took[n*99/100].Round(10*time.Microsecond), l.took[n-1].Round(10*time.Microsecond))
	if len(l.failed) > 0 {
		t.Errorf("%s: %d handshakes failed, the first: %v", name, len(l.failed), l.failed[0])
		l.failed = nil
	}
}

// Stop ends it.
func (l *Load) Stop() {
	close(l.stop)
	l.lis.Close()
	l.done.Wait()
}

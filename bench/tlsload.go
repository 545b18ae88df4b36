// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"
)

// TLSLoad is full TLS handshakes: each on a connection of its own, none
// resumed. `pno bench tls-load` runs it, in the clients' namespace.
type TLSLoad struct {
	Addr     string        // that the certificate names
	Roots    string        // file of the authority's certificate
	Version  string        // 1.2 or 1.3
	Clients  int           // connections at once
	Rate     int           // handshakes a second over all clients; 0: as many as go
	Duration time.Duration // no handshake begins after it
}

// TLSLoadResult is what the clients saw.
type TLSLoadResult struct {
	Handshakes int     `json:"handshakes"`
	Failed     int     `json:"failed"`
	FirstError string  `json:"first_error,omitempty"`
	Seconds    float64 `json:"seconds"`
	P50        float64 `json:"p50_us"` // from connect to the end of the handshake
	P99        float64 `json:"p99_us"`
}

var tlsVersions = map[string]uint16{"1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13}

func (l *TLSLoad) config() (*tls.Config, error) {
	pem, err := os.ReadFile(l.Roots)
	if err != nil {
		return nil, fmt.Errorf("read the authority: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("no certificate in %s", l.Roots)
	}
	version, ok := tlsVersions[l.Version]
	if !ok {
		return nil, fmt.Errorf("%q is not a version of TLS; use 1.2 or 1.3", l.Version)
	}
	host, _, err := net.SplitHostPort(l.Addr)
	if err != nil {
		return nil, fmt.Errorf("server address %q: %w", l.Addr, err)
	}
	// The second and third group are for certificates of TLS 1.2.
	return &tls.Config{RootCAs: roots, ServerName: host, MinVersion: version, MaxVersion: version,
		CurvePreferences: []tls.CurveID{tls.X25519, tls.CurveP256, tls.CurveP384}}, nil
}

// Run does handshakes until the duration is over, or ctx ends.
func (l *TLSLoad) Run(ctx context.Context) (*TLSLoadResult, error) {
	cfg, err := l.config()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, l.Duration)
	defer cancel()
	var (
		mu   sync.Mutex
		took []time.Duration
		r    TLSLoadResult
		wg   sync.WaitGroup
	)
	begun := time.Now()
	for i := range l.Clients {
		wg.Go(func() {
			for n := i; l.wait(ctx, begun, n); n += l.Clients {
				d, err := handshake(l.Addr, cfg)
				mu.Lock()
				if err == nil {
					took = append(took, d)
				} else if r.Failed++; r.FirstError == "" {
					r.FirstError = err.Error()
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	r.Handshakes, r.Seconds = len(took), time.Since(begun).Seconds()
	if len(took) > 0 {
		slices.Sort(took)
		r.P50, r.P99 = micros(quantile(took, 0.5)), micros(quantile(took, 0.99))
	}
	return &r, nil
}

// wait waits until handshake n is due. A client that is late catches up.
func (l *TLSLoad) wait(ctx context.Context, begun time.Time, n int) bool {
	if l.Rate > 0 {
		due := begun.Add(time.Duration(float64(n) / float64(l.Rate) * float64(time.Second)))
		if d := time.Until(due); d > 0 {
			select {
			case <-ctx.Done():
			case <-time.After(d):
			}
		}
	}
	return ctx.Err() == nil
}

// handshake is over for both ends when the server, which has nothing to say,
// closes.
func handshake(addr string, cfg *tls.Config) (time.Duration, error) {
	start := time.Now()
	raw, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		return 0, err
	}
	defer func() { _ = raw.Close() }() // the server has closed already
	_ = raw.SetDeadline(start.Add(10 * time.Second))
	c := tls.Client(raw, cfg)
	if err := c.Handshake(); err != nil {
		return 0, err
	}
	took := time.Since(start)
	var one [1]byte
	if _, err := c.Read(one[:]); !errors.Is(err, io.EOF) {
		return 0, fmt.Errorf("instead of the end after the handshake: %w", err)
	}
	return took, nil
}

// runIn runs the load with this program's own binary inside a namespace, pinned
// to a core.
func (l *TLSLoad) runIn(ctx context.Context, bin, ns, core string) (*TLSLoadResult, error) {
	c := exec.CommandContext(ctx, "ip", "netns", "exec", ns, "taskset", "-c", core, filepath.Join(bin, "pno"), "bench", "tls-load",
		"--addr", l.Addr, "--roots", l.Roots, "--tls", l.Version, "--clients", strconv.Itoa(l.Clients),
		"--rate", strconv.Itoa(l.Rate), "--duration", l.Duration.String())
	c.Stderr = os.Stderr
	out, err := c.Output()
	if err != nil {
		return nil, fmt.Errorf("run handshakes against %s: %w", l.Addr, err)
	}
	var r TLSLoadResult
	if err := json.Unmarshal(out, &r); err != nil {
		return nil, fmt.Errorf("handshakes against %s: read the result: %w", l.Addr, err)
	}
	if r.Handshakes == 0 {
		return nil, fmt.Errorf("no handshake with %s works: %s", l.Addr, r.FirstError)
	}
	return &r, nil
}

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }

func quantile(sorted []time.Duration, q float64) time.Duration {
	return sorted[int(q*float64(len(sorted)-1))]
}

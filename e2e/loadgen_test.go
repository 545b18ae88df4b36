// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// The load generator is this binary in another role, so that its descriptors
// and its CPU time are its own. It reads one loadSpec from stdin, and writes
// one loadResult to stdout. Another line on stdin, or its end, tells it to
// finish what it has begun and stop.

// loadSpec says what to do.
type loadSpec struct {
	Addr     string
	From     []string // source addresses, in turn; the system's choice if empty
	Objects  []object // asked for in turn
	Conns    int      // at once
	Requests int64    // in all; 0: until told to stop
	Close    bool     // ask the server to close after each answer
	Hangup   bool     // close after each answer ourselves
	Upload   bool     // PUT the objects
	Hold     bool     // open all, one exchange on each; told to go on: another one on each
	Timeout  time.Duration
	Rate     int // bytes a second and connection, read no faster; 0: as fast as possible
}

// loadResult says what came of it. A failure is counted under what failed and
// how.
type loadResult struct {
	Connections int64
	Requests    int64 // answered right, hash and all
	Bytes       int64
	// A connection that was kept may close just as the next request goes out.
	// Any HTTP client sends that again on a new one; we count it.
	Again     int64
	Failures  map[string]int64
	Seconds   float64
	P50, P99  time.Duration
	MaxGap    time.Duration // longest time without a right answer
	LastError string
}

func (r *loadResult) failed() (n int64) {
	for _, c := range r.Failures {
		n += c
	}
	return n
}

func (r *loadResult) rate() float64 { return float64(r.Requests) / r.Seconds }

func (r *loadResult) String() string {
	return fmt.Sprintf("%d requests on %d connections, %.1f MB in %.1f s (%.0f/s), p50 %v p99 %v, longest gap %v, %d sent again, failures %v %s",
		r.Requests, r.Connections, float64(r.Bytes)/1e6, r.Seconds, r.rate(), r.P50, r.P99, r.MaxGap, r.Again, r.Failures, r.LastError)
}

// loadMain is the process.
func loadMain() {
	in := bufio.NewReader(os.Stdin)
	line, err := in.ReadBytes('\n')
	var spec loadSpec
	if err == nil {
		err = json.Unmarshal(line, &spec)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "load: read the specification:", err)
		os.Exit(2)
	}
	g := &loadGen{spec: spec, signal: make(chan struct{}), failures: map[string]int64{}}
	go func() {
		_, _ = in.ReadString('\n')
		close(g.signal)
	}()
	out, err := json.Marshal(g.run())
	if err == nil {
		_, err = fmt.Printf("%s\n", out)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "load: write the result:", err)
		os.Exit(2)
	}
	os.Exit(0)
}

// maxFailures ends a load.
const maxFailures = 200

type loadGen struct {
	spec   loadSpec
	signal chan struct{} // closed: stop, or with Hold: go on

	begun       atomic.Int64 // requests
	failed      atomic.Int64
	connections atomic.Int64
	again       atomic.Int64
	bytes       atomic.Int64

	mu        sync.Mutex
	failures  map[string]int64
	lastError string
	latencies []time.Duration
	last      time.Time // of a right answer
	gap       time.Duration
}

func (g *loadGen) run() *loadResult {
	if g.spec.Timeout == 0 {
		g.spec.Timeout = 20 * time.Second
	}
	start := time.Now()
	g.last = start
	var wg, held sync.WaitGroup
	held.Add(g.spec.Conns)
	for i := range g.spec.Conns {
		wg.Go(func() {
			if g.spec.Hold {
				g.hold(i, &held)
			} else {
				g.work(i)
			}
		})
	}
	if g.spec.Hold {
		held.Wait()
		fmt.Println("held")
	}
	wg.Wait()
	r := &loadResult{
		Connections: g.connections.Load(), Requests: int64(len(g.latencies)), Bytes: g.bytes.Load(), Again: g.again.Load(),
		Failures: g.failures, Seconds: time.Since(start).Seconds(), MaxGap: max(g.gap, time.Since(g.last)), LastError: g.lastError,
	}
	if n := len(g.latencies); n > 0 {
		slices.Sort(g.latencies)
		r.P50, r.P99 = g.latencies[n/2], g.latencies[n*99/100]
	}
	return r
}

// next takes one request from the budget.
func (g *loadGen) next() bool {
	select {
	case <-g.signal:
		return false
	default:
	}
	// What fails this often will fail on; nobody shall wait for all of it.
	if g.failed.Load() >= maxFailures {
		return false
	}
	n := g.begun.Add(1)
	return g.spec.Requests == 0 || n <= g.spec.Requests
}

// work is one connection after the other, one request after the other.
func (g *loadGen) work(i int) {
	var c *loadConn
	defer func() { c.close() }()
	for k := i; g.next(); k++ {
		o := g.spec.Objects[k%len(g.spec.Objects)]
		for fresh := false; ; {
			if c == nil {
				var err error
				if c, err = g.dial(k); err != nil {
					g.fail(err)
					time.Sleep(5 * time.Millisecond)
					break
				}
				fresh = true
			}
			silent, err := g.exchange(c, o)
			if err == nil {
				if g.spec.Close || g.spec.Hangup {
					c.close()
					c = nil
				}
				break
			}
			c.close()
			c = nil
			if silent && !fresh {
				g.again.Add(1)
				continue
			}
			g.fail(err)
			break
		}
	}
}

// hold opens a connection and uses it once, waits, and uses it again.
func (g *loadGen) hold(i int, held *sync.WaitGroup) {
	o := g.spec.Objects[i%len(g.spec.Objects)]
	c, err := g.dial(i)
	if err == nil {
		_, err = g.exchange(c, o)
	}
	held.Done()
	if err != nil {
		g.fail(fmt.Errorf("before the wait: %w", err))
		c.close()
		return
	}
	<-g.signal
	if _, err := g.exchange(c, o); err != nil {
		g.fail(fmt.Errorf("after the wait: %w", err))
	}
	c.close()
}

func (g *loadGen) fail(err error) {
	// Ports and addresses would make each failure one of its own.
	text := err.Error()
	var errno syscall.Errno
	if errors.As(err, &errno) {
		stage, _, _ := strings.Cut(text, ": ")
		text = stage + ": " + errno.Error()
	} else if errors.Is(err, os.ErrDeadlineExceeded) {
		stage, _, _ := strings.Cut(text, ": ")
		text = stage + ": timeout"
	}
	g.failed.Add(1)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.failures[text]++
	g.lastError = err.Error()
}

type loadConn struct {
	net.Conn
	r *bufio.Reader
}

func (c *loadConn) close() {
	if c != nil && c.Conn != nil {
		c.Close()
	}
}

func (g *loadGen) dial(k int) (*loadConn, error) {
	d := net.Dialer{Timeout: g.spec.Timeout}
	if n := len(g.spec.From); n > 0 {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(g.spec.From[k%n])}
		d.Control = lateBind
	}
	c, err := d.DialContext(context.Background(), "tcp", g.spec.Addr)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	if g.spec.Rate > 0 {
		_ = c.(*net.TCPConn).SetReadBuffer(32 << 10)
	}
	g.connections.Add(1)
	return &loadConn{c, bufio.NewReaderSize(c, 16<<10)}, nil
}

// exchange is one request and its answer. silent means that the peer closed
// before it said anything.
func (g *loadGen) exchange(c *loadConn, o object) (silent bool, err error) {
	start := time.Now()
	timeout := g.spec.Timeout
	if g.spec.Rate > 0 {
		timeout += time.Duration(o.Size) * time.Second / time.Duration(g.spec.Rate)
	}
	_ = c.SetDeadline(start.Add(timeout))
	if err := g.send(c, o); err != nil {
		return gone(err), fmt.Errorf("send: %w", err)
	}
	if _, err := c.r.Peek(1); err != nil {
		return gone(err), fmt.Errorf("wait for the answer: %w", err)
	}
	status, length, err := readHead(c.r)
	if err != nil {
		return false, fmt.Errorf("read the head: %w", err)
	}
	if status/100 != 2 {
		return false, fmt.Errorf("status %d", status)
	}
	if err := g.readBody(c, o, length); err != nil {
		return false, err
	}
	g.count(start, o.Size)
	return false, nil
}

func gone(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

func (g *loadGen) send(c *loadConn, o object) error {
	var head bytes.Buffer
	method := "GET"
	if g.spec.Upload {
		method = "PUT"
	}
	fmt.Fprintf(&head, "%s /%s HTTP/1.1\r\nHost: e2e\r\n", method, o.Name)
	if g.spec.Close {
		head.WriteString("Connection: close\r\n")
	}
	if !g.spec.Upload {
		head.WriteString("\r\n")
		_, err := c.Write(head.Bytes())
		return err
	}
	fmt.Fprintf(&head, "Content-Length: %d\r\n\r\n", o.Size)
	f, err := os.Open(o.File)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(c.Conn, io.MultiReader(&head, f))
	return err
}

func readHead(r *bufio.Reader) (status int, length int64, err error) {
	line, err := r.ReadString('\n')
	if err != nil {
		return 0, 0, err
	}
	fields := strings.Fields(line)
	if len(fields) < 2 || !strings.HasPrefix(fields[0], "HTTP/1.") {
		return 0, 0, fmt.Errorf("not an HTTP answer: %q", line)
	}
	if status, err = strconv.Atoi(fields[1]); err != nil {
		return 0, 0, err
	}
	for {
		if line, err = r.ReadString('\n'); err != nil {
			return 0, 0, err
		}
		line = strings.TrimSpace(line)
		if line == "" {
			return status, length, nil
		}
		if key, value, ok := strings.Cut(line, ":"); ok && strings.EqualFold(key, "Content-Length") {
			if length, err = strconv.ParseInt(strings.TrimSpace(value), 10, 64); err != nil {
				return 0, 0, err
			}
		}
	}
}

// readBody checks the body of a download, or the sum that the server reports
// for an upload.
func (g *loadGen) readBody(c *loadConn, o object, length int64) error {
	if g.spec.Upload {
		said := make([]byte, length)
		if _, err := io.ReadFull(c.r, said); err != nil {
			return fmt.Errorf("read the answer: %w", err)
		}
		if len(said) == 2*sha256.Size && string(said) != o.Sum {
			return fmt.Errorf("wrong sum of upload /%s", o.Name)
		}
		return nil
	}
	if length != o.Size {
		return fmt.Errorf("/%s has %d bytes instead of %d", o.Name, length, o.Size)
	}
	h := sha256.New()
	if err := g.readPaced(c, h, length); err != nil {
		return fmt.Errorf("read the body: %w", err)
	}
	if hex.EncodeToString(h.Sum(nil)) != o.Sum {
		return fmt.Errorf("wrong sum of /%s", o.Name)
	}
	return nil
}

func (g *loadGen) readPaced(c *loadConn, h hash.Hash, length int64) error {
	if g.spec.Rate == 0 {
		_, err := io.CopyN(h, c.r, length)
		return err
	}
	const perSecond = 10
	for left := length; left > 0; {
		n, err := io.CopyN(h, c.r, min(left, int64(g.spec.Rate/perSecond)))
		if err != nil {
			return err
		}
		left -= n
		time.Sleep(time.Second / perSecond)
	}
	return nil
}

func (g *loadGen) count(start time.Time, size int64) {
	now := time.Now()
	g.bytes.Add(size)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.latencies = append(g.latencies, now.Sub(start))
	g.gap = max(g.gap, now.Sub(g.last))
	g.last = now
}

// lateBind lets the kernel choose the source port when it knows the peer too,
// so that one port serves several peers.
func lateBind(_, _ string, raw syscall.RawConn) error {
	const ipBindAddressNoPort = 24
	var err error
	if cerr := raw.Control(func(fd uintptr) {
		err = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_IP, ipBindAddressNoPort, 1)
	}); cerr != nil {
		return cerr
	}
	return err
}

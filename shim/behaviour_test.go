// SPDX-License-Identifier: Apache-2.0

package shim_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"pno/host/policy"
	"pno/shim"
	"pno/sim/topology"
)

func TestHTTPServerAndClient(t *testing.T) {
	s := startSim(t, 2, publish)
	l := listen(t, dpuAddr+":80")
	body, rounds := bytes.Repeat([]byte("offload "), 1<<17), 5
	if raceEnabled {
		rounds = 1
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			h := sha256.New()
			_, _ = io.Copy(h, r.Body)
			fmt.Fprintf(w, "%x", h.Sum(nil))
			return
		}
		_, _ = w.Write(body)
	})}
	go func() { _ = srv.Serve(l) }()
	defer func() { _ = srv.Close() }()
	for _, tc := range []struct {
		name, url string
		dial      func(context.Context, string, string) (net.Conn, error)
	}{
		{"shim's client", "http://" + dpuAddr + ":80/", new(shim.Dialer).DialContext},
		{"from outside", "http://" + s.Published()[0].String() + "/", new(net.Dialer).DialContext},
	} {
		t.Run(tc.name, func(t *testing.T) {
			transport := &http.Transport{DialContext: tc.dial, MaxIdleConnsPerHost: 8}
			defer transport.CloseIdleConnections()
			client := http.Client{Transport: transport, Timeout: 30 * time.Second}
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() {
					for range rounds {
						checkHTTP(t, &client, tc.url, body)
					}
				})
			}
			wg.Wait()
		})
	}
	if r := s.Report(); r.SocketsOffloaded < 10 || r.BytesRx < uint64(8*rounds)<<20 {
		t.Errorf("%d sockets were offloaded, %d bytes received", r.SocketsOffloaded, r.BytesRx)
	}
}

func checkHTTP(t *testing.T, client *http.Client, url string, body []byte) {
	r, err := client.Get(url)
	if err != nil {
		t.Error(err)
		return
	}
	got, err := io.ReadAll(r.Body)
	_ = r.Body.Close()
	if err != nil || !bytes.Equal(got, body) {
		t.Errorf("GET: %d bytes of %d, %v", len(got), len(body), err)
	}
	r, err = client.Post(url, "text/plain", bytes.NewReader(body))
	if err != nil {
		t.Error(err)
		return
	}
	got, err = io.ReadAll(r.Body)
	_ = r.Body.Close()
	if want := fmt.Sprintf("%x", sha256.Sum256(body)); err != nil || string(got) != want {
		t.Errorf("POST: %s, want %s, %v", got, want, err)
	}
}

func TestErrors(t *testing.T) {
	startSim(t, 2)
	l := listen(t, "127.0.0.1:0")
	go echo(l)
	past := time.Unix(1, 0)
	cancelled, cancel := context.WithCancel(context.Background())
	cancel()
	for _, tc := range []struct {
		name string
		do   func() error
		want error
		op   string
	}{
		{"dial where nobody listens", func() error { _, err := shim.Dial("tcp", dpuAddr+":1"); return err }, syscall.ECONNREFUSED, "dial"},
		{"dial with a context that is over", func() error {
			_, err := new(shim.Dialer).DialContext(cancelled, "tcp", "198.18.9.9:1")
			return err
		}, context.Canceled, "dial"},
		{"dial in no time", func() error {
			_, err := (&shim.Dialer{Timeout: 50 * time.Millisecond}).Dial("tcp", "198.18.9.9:1")
			return err
		}, context.DeadlineExceeded, "dial"},
		{"listen on a port in use", func() error { _, err := shim.Listen("tcp", l.Addr().String()); return err }, syscall.EADDRINUSE, "listen"},
		{"listen on an address that is another's", func() error { _, err := shim.Listen("tcp", "198.18.9.9:1"); return err }, syscall.EADDRNOTAVAIL, "listen"},
		{"read after close", func() error {
			c := dial(t, l.Addr().String())
			_ = c.Close()
			_, err := c.Read(make([]byte, 1))
			return err
		}, net.ErrClosed, "read"},
		{"write after close", func() error {
			c := dial(t, l.Addr().String())
			_ = c.Close()
			_, err := c.Write(make([]byte, 1))
			return err
		}, net.ErrClosed, "write"},
		{"close twice", func() error { c := dial(t, l.Addr().String()); _ = c.Close(); return c.Close() }, net.ErrClosed, "close"},
		{"write after CloseWrite", func() error {
			c := dial(t, l.Addr().String())
			_ = c.CloseWrite()
			_, err := c.Write(make([]byte, 1))
			return err
		}, syscall.EPIPE, "write"},
		{"read past the deadline", func() error {
			c := dial(t, l.Addr().String())
			_ = c.SetReadDeadline(past)
			_, err := c.Read(make([]byte, 1))
			return err
		}, os.ErrDeadlineExceeded, "read"},
		{"accept past the deadline", func() error {
			l := listen(t, "127.0.0.1:0")
			_ = l.SetDeadline(time.Now().Add(10 * time.Millisecond))
			_, err := l.Accept()
			_ = l.SetDeadline(time.Time{})
			if c, s := pairOn(t, l); c == nil || s == nil {
				t.Error("no connection after the deadline was taken back")
			}
			return err
		}, os.ErrDeadlineExceeded, "accept"},
		{"accept of a closed listener", func() error {
			l := listen(t, "127.0.0.1:0")
			time.AfterFunc(10*time.Millisecond, func() { _ = l.Close() })
			_, err := l.Accept()
			return err
		}, net.ErrClosed, "accept"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := tc.do()
			var op *net.OpError
			if !errors.Is(err, tc.want) || !errors.As(err, &op) || op.Op != tc.op {
				t.Errorf("%v (%T), want a net.OpError of %q with %v", err, err, tc.op, tc.want)
			}
			if errors.Is(tc.want, context.DeadlineExceeded) || errors.Is(tc.want, os.ErrDeadlineExceeded) {
				if !op.Timeout() {
					t.Error("it is not called a time-out")
				}
			}
		})
	}
}

func TestHalves(t *testing.T) {
	startSim(t, 1)
	a, b := pair(t)
	if _, err := a.Write([]byte("last words")); err != nil {
		t.Fatal(err)
	}
	if err := a.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(b)
	if string(got) != "last words" || err != nil {
		t.Fatalf("%q, %v", got, err)
	}
	if _, err := b.Write([]byte("heard")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 16)
	if n, err := a.Read(buf); string(buf[:n]) != "heard" || err != nil {
		t.Fatalf("%q, %v", buf[:n], err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := a.Read(buf)
		done <- err
	}()
	time.Sleep(10 * time.Millisecond)
	if err := a.CloseRead(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != io.EOF {
		t.Errorf("a Read that waits ends with %v when its half is shut", err)
	}
}

// Close with unread data, and after SetLinger(0), resets.
func TestReset(t *testing.T) {
	startSim(t, 1)
	for name, provoke := range map[string]func(a, b *shim.Conn){
		"unread data": func(a, b *shim.Conn) {
			_, _ = b.Write([]byte("never read"))
			_, _ = a.Read(make([]byte, 1)) // it has come
			_ = a.Close()
		},
		"SetLinger(0)": func(a, _ *shim.Conn) { _ = a.SetLinger(0); _ = a.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			a, b := pair(t)
			provoke(a, b)
			_ = b.SetDeadline(time.Now().Add(10 * time.Second))
			if _, err := b.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the peer's Read: %v", err)
			}
			if _, err := b.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("the next Read: %v", err)
			}
			if _, err := b.Write(make([]byte, 1)); !errors.Is(err, syscall.EPIPE) {
				t.Errorf("the next Write: %v", err)
			}
		})
	}
}

// Many connections at once, in chunks of all sizes, both ways, over several
// shards, with readers slow enough that payload is spilled.
func TestBulkIntegrity(t *testing.T) {
	sim := startSim(t, 3)
	l := listen(t, dpuAddr+":80")
	const conns = 12
	size := 1 << 20
	if raceEnabled {
		size >>= 3
	}
	var wg sync.WaitGroup
	for i := range conns {
		a, b := pairOn(t, l)
		for k, d := range [][2]*shim.Conn{{a, b}, {b, a}} {
			seed := uint64(i*2 + k)
			wg.Go(func() { send(t, d[0], seed, size) })
			wg.Go(func() { receive(t, d[1], seed, size, i%3 == 0) })
		}
	}
	wg.Wait()
	if n := counter(sim, "resets"); n != 0 {
		t.Errorf("%d connections were reset", n)
	}
	t.Logf("spilled %d bytes", counter(sim, "rx_spilled_bytes"))
}

func pattern(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	_, _ = r.Read(b)
	return b
}

func send(t *testing.T, c *shim.Conn, seed uint64, n int) {
	data, r := pattern(seed, n), rand.New(rand.NewPCG(seed, 1))
	for len(data) > 0 {
		k, err := c.Write(data[:min(len(data), 1+r.IntN(100_000))])
		if err != nil {
			t.Error(err)
			return
		}
		data = data[k:]
	}
	if err := c.CloseWrite(); err != nil {
		t.Error(err)
	}
}

func receive(t *testing.T, c *shim.Conn, seed uint64, n int, slow bool) {
	want, r := pattern(seed, n), rand.New(rand.NewPCG(seed, 2))
	buf := make([]byte, 70_000)
	for at := 0; ; {
		if slow && r.IntN(8) == 0 {
			time.Sleep(time.Millisecond)
		}
		k, err := c.Read(buf[:1+r.IntN(len(buf)-1)])
		if k > n-at || !bytes.Equal(buf[:k], want[at:at+k]) {
			t.Errorf("bytes at %d differ", at)
			return
		}
		at += k
		if err == io.EOF && at == n {
			return
		}
		if err != nil {
			t.Errorf("after %d bytes of %d: %v", at, n, err)
			return
		}
	}
}

// Payload that nobody reads does not keep the ring from others.
func TestSlowReaderDoesNotStallOthers(t *testing.T) {
	sim := startSim(t, 1)
	l := listen(t, "127.0.0.1:0")
	const kept = 1 << 18 // at least, for each
	var idle []*shim.Conn
	for range 6 {
		a, b := pairOn(t, l)
		for wrote, end := 0, time.Now().Add(20*time.Second); wrote < kept; {
			_ = a.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
			n, err := a.Write(make([]byte, 8<<20))
			if wrote += n; !errors.Is(err, os.ErrDeadlineExceeded) || time.Now().After(end) {
				t.Fatalf("a writer whose peer does not read wrote %d, %v", wrote, err)
			}
		}
		idle = append(idle, b)
	}
	a, b := pairOn(t, l)
	go send(t, a, 1, 4<<20)
	receive(t, b, 1, 4<<20, false)
	if counter(sim, "rx_spilled_bytes") == 0 {
		t.Error("nothing was spilled: the test does not test")
	}
	for _, c := range idle {
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
		if n, err := io.ReadFull(c, make([]byte, kept)); err != nil {
			t.Errorf("what was kept for a slow reader: %d bytes, %v", n, err)
		}
	}
}

func TestCopies(t *testing.T) {
	startSim(t, 1)
	a, b := pair(t)
	c, d := pair(t)
	data := pattern(9, 3<<20)
	go func() {
		if n, err := a.ReadFrom(bytes.NewReader(data)); n != int64(len(data)) || err != nil {
			t.Errorf("ReadFrom: %d, %v", n, err)
		}
		_ = a.CloseWrite()
	}()
	go func() {
		if n, err := io.Copy(c, b); n != int64(len(data)) || err != nil { // a proxy
			t.Errorf("Copy: %d, %v", n, err)
		}
		_ = c.CloseWrite()
	}()
	var got bytes.Buffer
	if n, err := d.WriteTo(&got); n != int64(len(data)) || err != nil || !bytes.Equal(got.Bytes(), data) {
		t.Errorf("WriteTo: %d bytes, %v, equal %v", n, err, bytes.Equal(got.Bytes(), data))
	}
}

func TestOptionsAndAddresses(t *testing.T) {
	startSim(t, 2)
	for _, at := range []string{dpuAddr + ":0", "[2001:2::2]:0", "127.0.0.1:0", "[::1]:0"} {
		a, b := pairOn(t, listen(t, at))
		if a.LocalAddr().String() != b.RemoteAddr().String() || a.RemoteAddr().String() != b.LocalAddr().String() {
			t.Errorf("%v-%v and %v-%v", a.LocalAddr(), a.RemoteAddr(), b.LocalAddr(), b.RemoteAddr())
		}
		if _, ok := a.LocalAddr().(*net.TCPAddr); !ok {
			t.Errorf("an address is a %T", a.LocalAddr())
		}
		for name, err := range map[string]error{
			"SetNoDelay": a.SetNoDelay(false), "SetKeepAlive": a.SetKeepAlive(true), "SetKeepAlivePeriod": a.SetKeepAlivePeriod(time.Minute),
			"SetKeepAliveConfig": a.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: time.Second, Count: 3}),
			"SetReadBuffer":      a.SetReadBuffer(1 << 16), "SetWriteBuffer": b.SetWriteBuffer(1 << 16), "SetLinger": a.SetLinger(3),
		} {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		go func() { _, _ = a.Write([]byte("x")) }()
		if _, err := b.Read(make([]byte, 1)); err != nil {
			t.Error(err)
		}
	}
	l := listen(t, ":0") // both families
	port := l.Addr().(*net.TCPAddr).Port
	for _, ip := range []string{dpuAddr, "2001:2::2", "127.0.0.1", "::1"} {
		_ = dial(t, net.JoinHostPort(ip, fmt.Sprint(port)))
		if c, err := l.Accept(); err != nil || c.RemoteAddr().(*net.TCPAddr).IP == nil {
			t.Errorf("%s: %v", ip, err)
		}
	}
	local := &net.TCPAddr{IP: net.ParseIP(dpuAddr), Port: 12345}
	c, err := (&shim.Dialer{LocalAddr: local}).Dial("tcp", fmt.Sprintf("%s:%d", dpuAddr, port))
	if err != nil || c.LocalAddr().String() != local.String() {
		t.Errorf("from %v: %v, %v", local, c, err)
	} else {
		_ = c.Close()
	}
}

// What the policy leaves to the kernel is package net's, and counted.
func TestPolicy(t *testing.T) {
	p, err := policy.Parse("test", []byte("no_dpu: refuse\nrules:\n  - {connect: \"198.18.0.0/15:9\", action: refuse}\n  - {listen: \"any:4242\", action: refuse}\n"))
	if err != nil {
		t.Fatal(err)
	}
	sim := startSim(t, 1, func(c *topology.Config) { c.Policy = p })
	l, err := shim.Listen("tcp", "127.0.0.1:0") // loopback is the kernel's unless it says otherwise
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if _, ok := l.(*net.TCPListener); !ok {
		t.Errorf("Listen gives a %T", l)
	}
	c, err := shim.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if _, ok := c.(*net.TCPConn); !ok {
		t.Errorf("Dial gives a %T", c)
	}
	if _, err := shim.Dial("tcp", dpuAddr+":9"); !errors.Is(err, syscall.EACCES) {
		t.Errorf("a connection that the policy refuses: %v", err)
	}
	if _, err := shim.Listen("tcp", ":4242"); !errors.Is(err, syscall.EACCES) {
		t.Errorf("a listener that the policy refuses: %v", err)
	}
	r := sim.Report()
	if r.SocketsKernel["policy"] != 2 || counter(sim, "sockets_refused") != 2 {
		t.Errorf("counted %v, %d refused", r.SocketsKernel, counter(sim, "sockets_refused"))
	}
}

func TestWithoutHostd(t *testing.T) {
	t.Setenv("PNO_HOSTD", t.TempDir()+"/nobody")
	l, err := shim.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if _, ok := l.(*net.TCPListener); !ok {
		t.Errorf("Listen gives a %T", l)
	}
}

func counter(s *topology.Sim, name string) uint64 {
	for _, c := range s.Report().Host.Counters {
		if c.Name == name {
			return c.Value
		}
	}
	panic("no counter " + name)
}

// SPDX-License-Identifier: Apache-2.0

package agent_test

import (
	"context"
	"crypto/sha256"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"pno/crypto/agent"
	"pno/crypto/client"
	"pno/crypto/cryptotest"
	"pno/crypto/engine/enginetest"
	"pno/crypto/signing"
)

// start runs an agent over a cluster, and returns its socket and how to stop it.
func start(t *testing.T, c *cryptotest.Cluster, path string, inflight int) (stop func()) {
	t.Helper()
	cluster, err := client.NewCluster(client.Config{Identity: cryptotest.Identity(t, c.CA, cryptotest.ProxyURI), Workers: c.Addrs(), WorkerIdentity: cryptotest.WorkerURI,
		Stall: time.Minute}) // longer than operations wait
	if err != nil {
		t.Fatal(err)
	}
	cl, err := client.New(time.Second, cluster)
	if err != nil {
		t.Fatal(err)
	}
	a, err := agent.New(agent.Config{Sockets: []agent.Socket{{Path: path, UID: -1}}, Client: cl, MaxInflight: inflight, MaxConns: 3})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- a.Serve(ctx) }()
	for deadline := time.Now().Add(20 * time.Second); ; {
		if _, err := os.Lstat(path); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("no socket")
		}
		time.Sleep(time.Millisecond)
	}
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
		cl.Close()
	}
	t.Cleanup(stop)
	return stop
}

// provider plays the other side.
type provider struct {
	t *testing.T
	c net.Conn
}

func dial(t *testing.T, path string) *provider {
	t.Helper()
	var c net.Conn
	var err error
	// The file is there a moment before anyone listens.
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		if c, err = net.Dial("unixpacket", path); err == nil {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	return &provider{t, c}
}

func (p *provider) send(b []byte) {
	p.t.Helper()
	if _, err := p.c.Write(b); err != nil {
		p.t.Fatal(err)
	}
}

// recv returns the messages of one packet; none when the connection is over.
func (p *provider) recv() []any {
	p.t.Helper()
	buf := make([]byte, agent.MaxPacket+1)
	n, err := p.c.Read(buf)
	if err != nil || n == 0 {
		return nil
	}
	var out []any
	for b := buf[:n]; len(b) > 0; {
		msg, rest, err := agent.Next(b)
		if err != nil {
			p.t.Fatal(err)
		}
		out, b = append(out, msg), rest
	}
	return out
}

func greet(t *testing.T, path string) *provider {
	t.Helper()
	p := dial(t, path)
	p.send(agent.AppendHello(nil, uint32(os.Getpid()), "test"))
	if got := p.recv(); len(got) != 1 {
		t.Fatalf("no welcome: %v", got)
	} else if w, ok := got[0].(*agent.Welcome); !ok || w.MaxInflight == 0 || w.MaxTimeoutMicros != 1_000_000 {
		t.Fatalf("got %+v", got[0])
	}
	return p
}

// results waits for n of them.
func (p *provider) results(n int) map[uint64]*agent.Result {
	p.t.Helper()
	out := map[uint64]*agent.Result{}
	for len(out) < n {
		msgs := p.recv()
		if msgs == nil {
			p.t.Fatalf("%d of %d results", len(out), n)
		}
		for _, m := range msgs {
			r := m.(*agent.Result)
			out[r.ID] = r
		}
	}
	return out
}

func request(t *testing.T) *signing.Request {
	d := sha256.Sum256([]byte("x"))
	return &signing.Request{Key: enginetest.Key(t, "P-256").ID, Scheme: signing.ECDSAP256SHA256, Input: signing.Digest, Data: d[:]}
}

func TestAgent(t *testing.T) {
	c := cryptotest.New(t, 2, cryptotest.AllowAll, "P-256", "RSA-2048")
	path := filepath.Join(t.TempDir(), "s")
	start(t, c, path, 64)
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
	p := greet(t, path)
	unknown, short, transcript := *request(t), *request(t), *request(t)
	unknown.Key[0] ^= 1
	short.Data = short.Data[:20]
	transcript.Input = signing.TLS13Server
	batch := agent.AppendOp(nil, 1, request(t), 0)
	batch = agent.AppendOp(batch, 2, &unknown, 500_000)
	batch = agent.AppendOp(batch, 3, &short, 500_000)
	batch = agent.AppendOp(batch, 4, &transcript, 500_000)
	p.send(batch)
	got := p.results(4)
	for id, want := range map[uint64]signing.Status{1: signing.OK, 2: signing.UnknownKey, 3: signing.BadInput, 4: signing.OK} {
		if signing.Status(got[id].Status) != want {
			t.Errorf("operation %d: %v, want %v", id, signing.Status(got[id].Status), want)
		}
	}
	tk := enginetest.Key(t, "P-256")
	for id, r := range map[uint64]*signing.Request{1: request(t), 4: &transcript} {
		task, _ := signing.Prepare(r, tk.Public, false)
		if err := signing.Verify(tk.Public, &task, got[id].Data); err != nil {
			t.Errorf("operation %d: %v", id, err)
		}
	}
}

// A process in a container knows another pid of itself than the agent does.
func TestPIDOfAnotherNamespace(t *testing.T) {
	c := cryptotest.New(t, 1, cryptotest.AllowAll, "P-256")
	path := filepath.Join(t.TempDir(), "s")
	start(t, c, path, 64)
	for _, pid := range []uint32{0, 1, uint32(os.Getpid() + 1)} {
		p := dial(t, path)
		p.send(agent.AppendHello(nil, pid, "contained"))
		if got := p.recv(); len(got) != 1 {
			t.Fatalf("pid %d: no welcome", pid)
		} else if _, ok := got[0].(*agent.Welcome); !ok {
			t.Fatalf("pid %d: got %+v", pid, got[0])
		}
		p.send(agent.AppendOp(nil, 1, request(t), 0))
		if r := p.results(1)[1]; signing.Status(r.Status) != signing.OK {
			t.Errorf("pid %d: got %+v", pid, r)
		}
		p.c.Close()
	}
}

// Garbage ends its connection and disturbs no other.
func TestGarbage(t *testing.T) {
	c := cryptotest.New(t, 1, cryptotest.AllowAll, "P-256")
	path := filepath.Join(t.TempDir(), "s")
	start(t, c, path, 64)
	good := greet(t, path)
	for name, bytes := range map[string][]byte{
		"noise": []byte("GET / HTTP/1.1\r\n\r\n and more than a header"), "second hello": agent.AppendHello(nil, 0, "x"),
		"cut": agent.AppendOp(nil, 1, request(t), 0)[:80],
	} {
		p := greet(t, path)
		p.send(bytes)
		if msgs := p.recv(); msgs != nil {
			t.Errorf("%s: answered %v", name, msgs)
		}
		p.c.Close()
	}
	good.send(agent.AppendOp(nil, 7, request(t), 0))
	if r := good.results(1)[7]; r == nil || signing.Status(r.Status) != signing.OK {
		t.Errorf("got %+v", r)
	}
}

func TestLimits(t *testing.T) {
	c := cryptotest.New(t, 1, cryptotest.AllowAll, "P-256")
	path := filepath.Join(t.TempDir(), "s")
	start(t, c, path, 4)
	p := greet(t, path)
	p.send(agent.AppendOp(nil, 99, request(t), 0))
	p.results(1)
	c.Workers[0].Fault.Stall()
	var batch []byte
	for i := range uint64(10) {
		batch = agent.AppendOp(batch, i, request(t), 1_000_000)
	}
	start := time.Now()
	p.send(batch)
	count := map[signing.Status]int{}
	for _, r := range p.results(10) {
		count[signing.Status(r.Status)]++
	}
	if count[signing.Overloaded] != 6 || count[signing.DeadlineExceeded] != 4 || time.Since(start) > 20*time.Second {
		t.Errorf("%v in %v", count, time.Since(start))
	}
	greet(t, path)
	greet(t, path)
	if got := dial(t, path).recv(); len(got) != 1 {
		t.Error("a fourth connection was neither refused nor closed")
	} else if r, ok := got[0].(*agent.Refused); !ok || syscall.Errno(r.Err) != syscall.EUSERS {
		t.Errorf("got %+v", got[0])
	}
}

// An agent that was killed leaves its socket; the next one takes its place, and
// does not take that of one that lives.
func TestRestart(t *testing.T) {
	c := cryptotest.New(t, 1, cryptotest.AllowAll, "P-256")
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	stop := start(t, c, path, 4)
	p := greet(t, path)
	cl, err := client.New(0, nil)
	if err != nil {
		t.Fatal(err)
	}
	second, err := agent.New(agent.Config{Sockets: []agent.Socket{{Path: path, UID: -1}}, Client: cl})
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Serve(context.Background()); err == nil {
		t.Error("two agents on one socket")
	}
	stop()
	if msgs := p.recv(); msgs != nil {
		t.Errorf("after the end: %v", msgs)
	}
	start(t, c, path, 4)
	p = greet(t, path)
	p.send(agent.AppendOp(nil, 1, request(t), 0))
	if r := p.results(1)[1]; signing.Status(r.Status) != signing.OK {
		t.Errorf("got %+v", r)
	}
}

// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"pno/crypto/client"
	"pno/crypto/cryptotest"
	"pno/crypto/engine"
	"pno/crypto/engine/enginetest"
	"pno/crypto/server"
	"pno/crypto/signing"
	"pno/crypto/wire"
	cryptov1 "pno/proto/pno/crypto/v1"
)

// Connections that say nothing sensible are all in the audit log, and fill it
// with a few lines.
func TestGarbageFlood(t *testing.T) {
	const n, at = 2000, 8
	c := cryptotest.New(t, 0, cryptotest.AllowAll, "P-256")
	var said lines
	w := c.StartTuned(t, "a", cryptotest.AllowAll, "", func(cfg *server.Config) {
		cfg.Log, cfg.Summary = slog.New(slog.NewTextHandler(&said, nil)), 100*time.Millisecond
	}, cryptotest.Software)
	good := open(t, w, cryptotest.Identity(t, c.CA, cryptotest.ProxyURI))
	began := time.Now()
	var wg sync.WaitGroup
	for range at {
		wg.Go(func() {
			for range n / at {
				raw, err := net.Dial("tcp", w.Addr)
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = raw.Write([]byte("GET / HTTP/1.1\r\n\r\n"))
				_ = raw.SetReadDeadline(time.Now().Add(30 * time.Second))
				for buf := make([]byte, 512); err == nil; {
					_, err = raw.Read(buf)
				}
				_ = raw.(*net.TCPConn).SetLinger(0)
				raw.Close()
			}
		})
	}
	wg.Wait()
	sums := uint64(time.Since(began)/(100*time.Millisecond)) + 2
	eventuallyIn(t, 20*time.Second, "all are in the audit log", func() bool { return refusedIn(t, w) >= n })
	if got := refusedIn(t, w); got != n {
		t.Errorf("%d refusals in the audit log, want %d", got, n)
	}
	text, err := os.ReadFile(w.Audit)
	if err != nil {
		t.Fatal(err)
	}
	// One by one 16, a sum an interval of each status, and the log's first line.
	most := 2*16 + 2*sums + 4
	if got := uint64(bytes.Count(text, []byte("\n"))); got > most {
		t.Errorf("%d lines in the audit log, want at most %d", got, most)
	}
	if got := said.n.Load(); got > most {
		t.Errorf("%d lines in the log, want at most %d", got, most)
	}
	if got := ask(t, good, operation(t, 9, "P-256")); got[9].Status != cryptov1.Status_STATUS_OK {
		t.Errorf("another stream is disturbed: %v", got)
	}
}

// lines counts what a logger writes.
type lines struct{ n atomic.Uint64 }

func (l *lines) Write(b []byte) (int, error) {
	l.n.Add(1)
	return len(b), nil
}

// refusedIn is how many strangers the audit log tells of.
func refusedIn(t *testing.T, w *cryptotest.Worker) uint64 {
	s := statuses(t, w)
	return s["denied"] + s["overloaded"]
}

func eventuallyIn(t *testing.T, limit time.Duration, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(limit); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Errorf("not %s", what)
			return
		}
	}
}

// Operations above the rate are all counted, and told together.
func TestRateFlood(t *testing.T) {
	const rules = "rules:\n- {clients: [\"" + cryptotest.ProxyURI + "\"], keys: [\"*\"], rate: 0.001, burst: 1}\n"
	c := cryptotest.New(t, 0, rules, "P-256")
	w := c.StartTuned(t, "a", rules, "", func(cfg *server.Config) { cfg.Summary = 50 * time.Millisecond }, cryptotest.Software)
	s := open(t, w, cryptotest.Identity(t, c.CA, cryptotest.ProxyURI))
	const batches = 20
	for range batches {
		ops := make([]*cryptov1.Operation, wire.MaxBatch)
		for i := range ops {
			ops[i] = operation(t, uint64(i), "P-256")
		}
		ask(t, s, ops...)
	}
	const want = batches*wire.MaxBatch - 1
	eventuallyIn(t, 20*time.Second, "all are in the audit log", func() bool { return statuses(t, w)["rate_limited"] == want })
	text, err := os.ReadFile(w.Audit)
	if err != nil {
		t.Fatal(err)
	}
	if got := bytes.Count(text, []byte("rate_limited")); got > 64+1000 || got == 0 {
		t.Errorf("%d lines of refusals for %d", got, want)
	}
}

// slow is an engine of one worker that computes for a millisecond.
func slow(sink engine.Sink) (engine.Engine, error) {
	return slowEngine{engine.NewWorkers(1, 1024, 1, func(_ int, ops []*engine.Op) {
		time.Sleep(time.Millisecond)
		for _, op := range ops {
			op.Out = []byte("signed")
		}
	}, sink)}, nil
}

type slowEngine struct{ *engine.Workers }

func (slowEngine) Info() engine.Info {
	return engine.Info{Kind: "slow", Capacity: 1024, Window: 2, Verifies: true}
}
func (slowEngine) Load(engine.Material) (engine.Key, error) { return anyKey{}, nil }
func (e slowEngine) Close() error                           { e.Workers.Close(); return nil }

type anyKey struct{}

func (anyKey) Close() {}

// One client with four streams, each as full as it goes, does not keep another
// from being served in time: not one of its operations is refused or late.
func TestFairShare(t *testing.T) {
	const other = "spiffe://pno.test/proxy/2"
	const rules = "rules:\n- {clients: [\"spiffe://pno.test/proxy/*\"], keys: [\"*\"]}\n"
	c := cryptotest.New(t, 0, rules, "P-256")
	w := c.StartWith(t, "a", rules, "", slow)
	hog := cryptotest.Identity(t, c.CA, cryptotest.ProxyURI)
	ctx, stop := context.WithCancel(context.Background())
	var busy sync.WaitGroup
	defer busy.Wait()
	defer stop()
	var done, refused atomic.Int64
	for range 4 {
		s := open(t, w, hog)
		free := make(chan struct{}, wire.MaxInflight)
		busy.Go(func() { // has as much open as it may, and asks for fifty times what there is
			for ; ctx.Err() == nil; time.Sleep(20 * time.Millisecond) {
				ops := make([]*cryptov1.Operation, wire.MaxBatch)
				for i := range ops {
					ops[i] = operation(t, uint64(i), "P-256")
					select {
					case free <- struct{}{}:
					case <-ctx.Done():
						return
					}
				}
				if s.Send(&cryptov1.OperateRequest{Operations: ops}) != nil {
					return
				}
			}
		})
		busy.Go(func() {
			for ctx.Err() == nil {
				resp, err := s.Recv()
				if err != nil {
					return
				}
				for _, r := range resp.Results {
					<-free
					if r.Status == cryptov1.Status_STATUS_OK {
						done.Add(1)
					} else {
						refused.Add(1)
					}
				}
			}
		})
	}
	eventuallyIn(t, 30*time.Second, "the queue is full", func() bool { return refused.Load() > 0 })
	cluster, err := client.NewCluster(client.Config{Identity: cryptotest.Identity(t, c.CA, other), Workers: []string{w.Link.Addr()},
		WorkerIdentity: cryptotest.WorkerURI, Verify: client.VerifyOff, Wait: 20 * time.Second, Stall: 20 * time.Second, Attempts: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	id := enginetest.Key(t, "P-256").ID
	var took, longest time.Duration
	const n = 20
	for range n {
		start := time.Now()
		op := &client.Op{Request: signing.Request{Key: id, Scheme: signing.ECDSAP256SHA256, Input: signing.Digest, Data: make([]byte, 32)}}
		if _, err := cluster.Do(start.Add(20*time.Second), op); err != nil {
			t.Fatalf("the other client: %v", err)
		}
		took += time.Since(start)
		longest = max(longest, time.Since(start))
	}
	t.Logf("the other client: %v an operation, %v at most; the first: %d done, %d refused", (took / n).Round(10*time.Microsecond), longest.Round(10*time.Microsecond), done.Load(), refused.Load())
	// Behind the queue of the first, which holds more than a second of work, all of
	// them would have taken minutes.
	if took/n > 5*time.Second {
		t.Errorf("%v an operation", took/n)
	}
	if done.Load() == 0 {
		t.Error("the first client was not served at all")
	}
}

// Whoever says nothing does not hold up the end of a worker.
func TestEndWithStrangers(t *testing.T) {
	for name, end := range map[string]func(*server.Server) error{
		"close": (*server.Server).Close,
		"drain": func(s *server.Server) error {
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			return s.Drain(ctx)
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := cryptotest.New(t, 1, cryptotest.AllowAll, "P-256")
			w := c.Workers[0]
			strangers(t, w, "127.0.0.1", 3)
			good := open(t, w, cryptotest.Identity(t, c.CA, cryptotest.ProxyURI)) // they were accepted before
			if err := good.CloseSend(); err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			if err := end(w.Server); err != nil {
				t.Error(err)
			}
			if took := time.Since(start); took > 8*time.Second { // a handshake has ten
				t.Errorf("it took %v", took)
			}
		})
	}
}

// Connections and streams are bounded, for one client and in all.
func TestLimits(t *testing.T) {
	c := cryptotest.New(t, 0, cryptotest.AllowAll, "P-256")
	w := c.StartTuned(t, "a", cryptotest.AllowAll, "", func(cfg *server.Config) {
		cfg.Limits = server.Limits{Connections: 20, ClientConnections: 3, ClientStreams: 2, Streams: 5}
	}, cryptotest.Software)
	try := func(uri string) error {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		t.Cleanup(cancel)
		s, err := cryptov1.NewCryptoServiceClient(dial(t, w, cryptotest.Identity(t, c.CA, uri))).Operate(ctx)
		if err == nil {
			_, err = s.Recv()
		}
		return err
	}
	for i, want := range []codes.Code{codes.OK, codes.OK, codes.ResourceExhausted} {
		if err := try(cryptotest.ProxyURI); status.Code(err) != want {
			t.Errorf("stream %d: %v, want %v", i+1, err, want)
		}
	}
	if err := try(cryptotest.ProxyURI); status.Code(err) != codes.Unavailable {
		t.Errorf("a fourth connection: %v", err)
	}
	for i, want := range []codes.Code{codes.OK, codes.OK, codes.OK, codes.ResourceExhausted} {
		if err := try("spiffe://pno.test/proxy/" + string(rune('a'+i))); status.Code(err) != want {
			t.Errorf("another client, %d: %v, want %v", i+1, err, want)
		}
	}
	// Whoever says nothing has a part of the connections only, and gives them back.
	var idle []net.Conn
	full := false
	for range 20 {
		raw, err := net.Dial("tcp", w.Addr)
		if err != nil {
			t.Fatal(err)
		}
		idle = append(idle, raw)
	}
	for _, raw := range idle {
		_ = raw.SetReadDeadline(time.Now().Add(20 * time.Second))
		if _, err := raw.Read(make([]byte, 1)); err != nil {
			full = true
			break
		}
	}
	if !full {
		t.Error("more connections than there may be")
	}
	for _, raw := range idle {
		raw.Close()
	}
	eventuallyIn(t, 20*time.Second, "there is room again", func() bool {
		raw, err := net.Dial("tcp", w.Addr)
		if err != nil {
			return false
		}
		defer raw.Close()
		_ = raw.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		_, err = raw.Read(make([]byte, 1))
		timeout, ok := err.(net.Error)
		return ok && timeout.Timeout()
	})
}

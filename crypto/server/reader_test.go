// SPDX-License-Identifier: Apache-2.0

package server

import (
	"io"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pno/crypto/acl"
	"pno/crypto/engine"
	"pno/crypto/engine/enginetest"
	"pno/crypto/mtls"
	"pno/crypto/mtls/mtlstest"
	"pno/crypto/signing"
	"pno/crypto/wire"
	cryptov1 "pno/proto/pno/crypto/v1"
)

// script is a stream on which a client asks for what it is told to.
type script struct {
	replay
	requests []*cryptov1.OperateRequest
	before   func() // each Recv
	sends    int
}

func (s *script) Recv() (*cryptov1.OperateRequest, error) {
	if s.before != nil {
		s.before()
	}
	if len(s.requests) == 0 {
		return nil, io.EOF
	}
	req := s.requests[0]
	s.requests = s.requests[1:]
	return req, nil
}

func (s *script) Send(resp *cryptov1.OperateResponse) error {
	s.sends++
	return s.replay.Send(resp)
}

// pool is an engine of workers that counts what readers have computed for it.
type pool struct {
	*engine.Workers
	readers atomic.Int64
}

func (*pool) Info() engine.Info {
	return engine.Info{Kind: "pool", Capacity: 64, Window: 16, Verifies: true}
}
func (*pool) Load(engine.Material) (engine.Key, error) { return anyKey{}, nil }
func (p *pool) Close() error                           { p.Workers.Close(); return nil }

func (p *pool) compute(_ int, ops []*engine.Op) {
	var callers [32]uintptr
	frames := runtime.CallersFrames(callers[:runtime.Callers(1, callers[:])])
	for more := true; more; {
		var f runtime.Frame
		if f, more = frames.Next(); strings.HasSuffix(f.Function, "(*Server).read") {
			p.readers.Add(1)
		}
	}
	for _, op := range ops {
		op.Out = op.Task.Data
	}
}

// newReader is a worker with such an engine and one key, and a stream to it that
// has a reader at most.
func newReader(t *testing.T) (*Server, *pool, *key, func(*script) *stream) {
	t.Helper()
	id, err := mtls.Load(mtlstest.NewAuthority(t).Issue(t, "spiffe://pno.test/cryptod/r", time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	rules, err := acl.Parse("acl", []byte("rules:\n- {clients: [\"spiffe://pno.test/*\"], keys: [\"*\"]}\n"))
	if err != nil {
		t.Fatal(err)
	}
	p := new(pool)
	s, err := New(Config{Identity: id, Rules: rules, Log: slog.New(slog.DiscardHandler), Engines: []Opener{func(sink engine.Sink) (engine.Engine, error) {
		p.Workers = engine.NewWorkers(2, 64, 4, p.compute, sink)
		return p, nil
	}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	tk := enginetest.Key(t, "P-256")
	k := &key{id: tk.ID, name: "P-256", public: tk.Public, loaded: []engine.Key{anyKey{}}}
	k.refs.Store(1)
	k.cost.Store(quantum)
	s.table.Store(&table{keys: map[signing.KeyID]*key{tk.ID: k}})
	s.lull = 0
	return s, p, k, func(g *script) *stream {
		slots := make(chan struct{}, wire.MaxBatch)
		return &stream{client: "spiffe://pno.test/proxy/1", slots: slots, dead: make(chan struct{}),
			out: outbox{g: g, slots: slots, some: make(chan struct{}, 1)}, batch: make([][]*engine.Op, 1)}
	}
}

func request(k *key, ids ...uint64) *cryptov1.OperateRequest {
	req := &cryptov1.OperateRequest{}
	for _, id := range ids {
		req.Operations = append(req.Operations, &cryptov1.Operation{Id: id, KeyId: k.id[:], Scheme: uint32(signing.ECDSAP256SHA256),
			Input: cryptov1.Input_INPUT_DIGEST, Data: make([]byte, 32)})
	}
	return req
}

// One operation at a time is read, computed and answered by one goroutine, with one
// message each, and nobody else is woken: the stream has no writer here.
func TestReaderDoesAll(t *testing.T) {
	s, p, k, open := newReader(t)
	g := &script{}
	const n = 20
	for i := range uint64(n) {
		g.requests = append(g.requests, request(k, i+1))
	}
	st := open(g)
	asked := 0
	g.before = func() {
		if g.sends != asked || len(g.said) != asked || len(st.out.some) != 0 || len(st.slots) != 0 {
			t.Errorf("%d messages of %d answers to %d operations; %d wake-ups of the writer, %d slots taken", g.sends, len(g.said), asked, len(st.out.some), len(st.slots))
		}
		asked++
	}
	if err := s.read(g, st); err != nil {
		t.Fatal(err)
	}
	for i, r := range g.said {
		if r.Id != uint64(i+1) || r.Status != cryptov1.Status_STATUS_OK {
			t.Errorf("answer %d: %v", i, r)
		}
	}
	if got := p.readers.Load(); got != n || asked != n+1 {
		t.Errorf("%d of %d computed by the reader", got, n)
	}
}

// So is what is refused at once.
func TestReaderRefuses(t *testing.T) {
	s, _, k, open := newReader(t)
	unknown, bad := request(k, 7), request(k, 8)
	unknown.Operations[0].KeyId, bad.Operations[0].Scheme = make([]byte, 32), 1
	g := &script{requests: []*cryptov1.OperateRequest{unknown, bad}}
	st := open(g)
	if err := s.read(g, st); err != nil || g.sends != 2 || len(g.said) != 2 || len(st.out.some) != 0 {
		t.Errorf("%v; %d messages, %v", err, g.sends, g.said)
	}
}

// Everything else is the engine's own workers' and the stream's writer's: the
// reader reads on.
func TestReaderReadsOn(t *testing.T) {
	for name, tt := range map[string]struct {
		ids   []uint64
		spoil func(s *Server, k *key, st *stream)
	}{
		"two at once":             {[]uint64{1, 2}, func(*Server, *key, *stream) {}},
		"it has waited":           {[]uint64{1}, func(s *Server, _ *key, _ *stream) { s.lull = time.Hour }},
		"it takes long":           {[]uint64{1}, func(_ *Server, k *key, _ *stream) { k.cost.Store(long + 1) }},
		"another is open":         {[]uint64{1}, func(_ *Server, _ *key, st *stream) { st.slots <- struct{}{} }},
		"others wait for engines": {[]uint64{1}, func(s *Server, _ *key, _ *stream) { s.here[0] = nil }},
	} {
		t.Run(name, func(t *testing.T) {
			s, p, k, open := newReader(t)
			g := &script{requests: []*cryptov1.OperateRequest{request(k, tt.ids...)}}
			st := open(g)
			tt.spoil(s, k, st)
			before := len(st.slots)
			writer := make(chan error, 1)
			go func() { writer <- st.out.run() }()
			if err := s.read(g, st); err != nil {
				t.Fatal(err)
			}
			for deadline := time.Now().Add(30 * time.Second); len(st.slots) > before; time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal("no answer")
				}
			}
			st.out.close()
			if err := <-writer; err != nil || len(g.said) != len(tt.ids) || p.readers.Load() != 0 {
				t.Errorf("%v; %v; %d computed by the reader", err, g.said, p.readers.Load())
			}
		})
	}
}

// An operation that the lane would let wait is not the reader's.
func TestLaneAdmits(t *testing.T) {
	h := &hand{info: engine.Info{Capacity: 8, Window: 2}}
	l := newLane(h)
	a := opsOf("a", 1, quantum)
	if !l.admit("a") || l.busy() != 1 || l.shares["a"].out != 1 || l.active != 1 {
		t.Fatalf("%d busy, %+v", l.busy(), l.shares["a"])
	}
	l.took(a)
	if l.busy() != 0 || len(l.shares) != 0 || l.active != 0 {
		t.Errorf("afterwards %d busy, %d shares, %d active", l.busy(), len(l.shares), l.active)
	}
	l.put("hog", opsOf("hog", 2, quantum))
	if l.admit("a") {
		t.Error("beyond the window")
	}
	l.put("hog", opsOf("hog", 1, quantum))
	if l.admit("a") {
		t.Error("before what waits")
	}
	l.close()
	if l.admit("a") || l.shares["a"] != nil {
		t.Error("after the end")
	}
}

// stuck is a client that does not read its answers.
type stuck struct {
	in, goOn chan struct{}
	sent     [][]uint64
}

func (s *stuck) Send(resp *cryptov1.OperateResponse) error {
	s.in <- struct{}{}
	<-s.goOn
	var ids []uint64
	for _, r := range resp.Results {
		ids = append(ids, r.Id)
	}
	s.sent = append(s.sent, ids)
	return nil
}

// What comes up while the reader is at work is not forgotten, whoever writes it.
func TestReaderLeaves(t *testing.T) {
	for name, put := range map[string]func(*outbox){
		"answer":      func(o *outbox) { o.add(&cryptov1.Result{}) },
		"description": func(o *outbox) { o.tell(&cryptov1.WorkerInfo{}); <-o.some }, // that wake-up was in vain
	} {
		o := &outbox{some: make(chan struct{}, 1)}
		o.hold()
		put(o)
		if o.leave(); len(o.some) != 1 {
			t.Errorf("%s: the writer is not woken", name)
		}
	}
	o := &outbox{some: make(chan struct{}, 1)}
	o.hold()
	if o.leave(); len(o.some) != 0 {
		t.Error("the writer is woken for nothing")
	}
}

// While somebody waits for a client, nobody who answers an operation of it does,
// and what came up meanwhile goes out after that, by the same goroutine.
func TestAnswersDoNotWait(t *testing.T) {
	g := &stuck{in: make(chan struct{}), goOn: make(chan struct{})}
	slots := make(chan struct{}, 8)
	o := &outbox{g: g, slots: slots, some: make(chan struct{}, 1)}
	for range 5 {
		slots <- struct{}{}
	}
	o.hold()
	o.add(&cryptov1.Result{Id: 1})
	flushed := make(chan error, 1)
	go func() { flushed <- o.flush() }()
	<-g.in
	for id := range uint64(4) {
		o.add(&cryptov1.Result{Id: id + 2})
	}
	if len(o.some) != 0 {
		t.Error("the writer was woken")
	}
	g.goOn <- struct{}{}
	<-g.in
	g.goOn <- struct{}{}
	if err := <-flushed; err != nil || len(g.sent) != 2 || len(g.sent[1]) != 4 || len(slots) != 0 {
		t.Errorf("%v; sent %v, %d slots", err, g.sent, len(slots))
	}
}

// alone finds two senders at once.
type alone struct {
	busy atomic.Bool
	t    *testing.T
	got  map[uint64]int
}

func (a *alone) Send(resp *cryptov1.OperateResponse) error {
	if a.busy.Swap(true) {
		a.t.Error("two send at once")
	}
	for _, r := range resp.Results {
		a.got[r.Id]++
	}
	runtime.Gosched()
	a.busy.Store(false)
	return nil
}

// Reader, writer and engines at once: each answer goes out once.
func TestOutboxTogether(t *testing.T) {
	g := &alone{t: t, got: map[uint64]int{}}
	const each, engines = 2000, 3
	slots := make(chan struct{}, 64)
	o := &outbox{g: g, slots: slots, some: make(chan struct{}, 1)}
	writer := make(chan error, 1)
	go func() { writer <- o.run() }()
	var all sync.WaitGroup
	for e := range uint64(engines) {
		all.Go(func() {
			for i := range uint64(each) {
				slots <- struct{}{}
				o.add(&cryptov1.Result{Id: e*each + i})
			}
		})
	}
	all.Go(func() {
		for i := range uint64(each) {
			slots <- struct{}{}
			o.hold()
			o.add(&cryptov1.Result{Id: engines*each + i})
			if err := o.flush(); err != nil {
				t.Error(err)
			}
		}
	})
	all.Wait()
	for range cap(slots) {
		select {
		case slots <- struct{}{}:
		case <-time.After(30 * time.Second):
			t.Fatal("answers were left")
		}
	}
	o.close()
	if err := <-writer; err != nil || len(g.got) != (engines+1)*each {
		t.Errorf("%v; %d answers", err, len(g.got))
	}
	for id, n := range g.got {
		if n != 1 {
			t.Errorf("answer %d went out %d times", id, n)
		}
	}
}

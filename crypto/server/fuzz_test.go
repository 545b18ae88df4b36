// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"io"
	"log/slog"
	"testing"

	"google.golang.org/protobuf/proto"

	"pno/crypto/acl"
	"pno/crypto/engine"
	"pno/crypto/engine/enginetest"
	"pno/crypto/mtls"
	"pno/crypto/mtls/mtlstest"
	"pno/crypto/signing"
	"pno/crypto/wire"
	cryptov1 "pno/proto/pno/crypto/v1"
)

// replay is a client's stream with one request.
type replay struct {
	cryptov1.CryptoService_OperateServer
	req  *cryptov1.OperateRequest
	said []*cryptov1.Result
}

func (r *replay) Send(resp *cryptov1.OperateResponse) error {
	r.said = append(r.said, resp.Results...)
	return nil
}

func (r *replay) Context() context.Context { return context.Background() }

func (r *replay) Recv() (*cryptov1.OperateRequest, error) {
	req := r.req
	r.req = nil
	if req == nil {
		return nil, io.EOF
	}
	return req, nil
}

// echo gives what it should sign back, after a look at it.
type echo struct{ sink engine.Sink }

type anyKey struct{}

func (anyKey) Close() {}

func (echo) Info() engine.Info                        { return engine.Info{Kind: "echo", Capacity: 1 << 16, Verifies: true} }
func (echo) Load(engine.Material) (engine.Key, error) { return anyKey{}, nil }
func (echo) Close() error                             { return nil }

func (e echo) Submit(ops []*engine.Op) int {
	for _, op := range ops {
		if n := op.Task.Scheme.Hash(); !op.Task.Decrypt && n != 0 && len(op.Task.Data) != n.Size() {
			panic("a digest of another length came to the engine")
		}
		op.Out = op.Task.Data
	}
	e.sink(ops)
	return len(ops)
}

// Whatever bytes a client that is let in sends: each operation in them is
// answered once, by its id, and only what the scheme asks for is computed.
func FuzzOperate(f *testing.F) {
	id, err := mtls.Load(mtlstest.NewAuthority(f).Issue(f, "spiffe://pno.test/cryptod/f", 1<<40))
	if err != nil {
		f.Fatal(err)
	}
	rules, err := acl.Parse("acl", []byte("rules:\n- {clients: [\"spiffe://pno.test/*\"], keys: [\"*\"], tls12_premaster: true}\n"))
	if err != nil {
		f.Fatal(err)
	}
	s, err := New(Config{Identity: id, Rules: rules, Log: slog.New(slog.DiscardHandler),
		Engines: []Opener{func(sink engine.Sink) (engine.Engine, error) { return echo{sink}, nil }}})
	if err != nil {
		f.Fatal(err)
	}
	defer s.Close()
	keys := map[signing.KeyID]*key{}
	for _, kind := range []string{"RSA-2048", "P-256", "Ed25519"} {
		tk := enginetest.Key(f, kind)
		k := &key{id: tk.ID, name: kind, public: tk.Public, loaded: []engine.Key{anyKey{}}}
		k.refs.Store(1)
		keys[tk.ID] = k
		for _, in := range []cryptov1.Input{cryptov1.Input_INPUT_DIGEST, cryptov1.Input_INPUT_MESSAGE, cryptov1.Input_INPUT_TLS13_SERVER, cryptov1.Input_INPUT_TLS12_PREMASTER} {
			req := &cryptov1.OperateRequest{Operations: []*cryptov1.Operation{
				{Id: 7, KeyId: tk.ID[:], Scheme: uint32(signing.RSAPSSSHA256), Input: in, Data: make([]byte, 32)},
				{Id: 7, KeyId: tk.ID[:], Scheme: uint32(signing.Ed25519), Input: in, Data: make([]byte, 256), TimeoutMicros: 1 << 31},
			}}
			b, err := proto.Marshal(req)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(b)
		}
	}
	s.table.Store(&table{keys: keys})
	f.Fuzz(func(t *testing.T, b []byte) {
		req := &cryptov1.OperateRequest{}
		if len(b) > wire.MaxMessage || proto.Unmarshal(b, req) != nil {
			return
		}
		want := map[uint64]int{}
		for _, op := range req.Operations {
			want[op.Id]++
		}
		tooMany := len(req.Operations) > wire.MaxBatch
		g := &replay{req: req}
		slots := make(chan struct{}, wire.MaxBatch)
		st := &stream{client: "spiffe://pno.test/proxy/1", slots: slots, dead: make(chan struct{}),
			out: outbox{g: g, slots: slots, some: make(chan struct{}, 1)}, batch: make([][]*engine.Op, 1)}
		if err := s.read(g, st); (err != nil) != tooMany {
			t.Fatalf("%d operations: %v", len(req.Operations), err)
		}
		if err := st.out.flush(); err != nil { // what is left to the writer
			t.Fatal(err)
		}
		if tooMany {
			want = nil
		}
		for _, r := range g.said {
			if want[r.Id]--; want[r.Id] < 0 || r.Status == 0 || len(r.Text) > wire.MaxText || len(r.Data) > signing.MaxInput {
				t.Fatalf("answered %v", r)
			}
		}
		for id, n := range want {
			if n != 0 {
				t.Fatalf("operation %d: %d answers are missing", id, n)
			}
		}
		for _, k := range keys {
			if n := k.refs.Load(); n != 1 {
				t.Fatalf("key %s is held %d times", k.name, n)
			}
		}
	})
}

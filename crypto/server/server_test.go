// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"pno/crypto/acl"
	"pno/crypto/audit"
	"pno/crypto/cryptotest"
	"pno/crypto/engine"
	"pno/crypto/engine/enginetest"
	"pno/crypto/keystore"
	"pno/crypto/mtls"
	"pno/crypto/mtls/mtlstest"
	"pno/crypto/server"
	"pno/crypto/signing"
	"pno/crypto/wire"
	cryptov1 "pno/proto/pno/crypto/v1"
)

// dial connects to a worker as somebody.
func dial(t *testing.T, w *cryptotest.Worker, id *mtls.Identity) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+w.Link.Addr(), grpc.WithTransportCredentials(id.Client(cryptotest.WorkerURI)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// open opens a stream, and reads the worker's description.
func open(t *testing.T, w *cryptotest.Worker, id *mtls.Identity) cryptov1.CryptoService_OperateClient {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	s, err := cryptov1.NewCryptoServiceClient(dial(t, w, id)).Operate(ctx)
	if err != nil {
		t.Fatal(err)
	}
	first, err := s.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if i := first.Worker; i == nil || i.MaxBatch != wire.MaxBatch || len(i.Engines) == 0 || i.Draining {
		t.Fatalf("got %v", first)
	}
	return s
}

func operation(t *testing.T, id uint64, kind string) *cryptov1.Operation {
	k := enginetest.Key(t, kind).ID
	d := sha256.Sum256(nil)
	op := &cryptov1.Operation{Id: id, KeyId: k[:], Scheme: uint32(signing.RSAPSSSHA256), Input: cryptov1.Input_INPUT_DIGEST, Data: d[:]}
	if kind == "P-256" {
		op.Scheme = uint32(signing.ECDSAP256SHA256)
	}
	return op
}

// ask sends operations and waits for all results.
func ask(t *testing.T, s cryptov1.CryptoService_OperateClient, ops ...*cryptov1.Operation) map[uint64]*cryptov1.Result {
	t.Helper()
	if err := s.Send(&cryptov1.OperateRequest{Operations: ops}); err != nil {
		t.Fatal(err)
	}
	out := map[uint64]*cryptov1.Result{}
	for len(out) < len(ops) {
		resp, err := s.Recv()
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range resp.Results {
			out[r.Id] = r
		}
	}
	return out
}

func TestOperations(t *testing.T) {
	c := cryptotest.New(t, 1, cryptotest.AllowAll, "RSA-2048", "P-256")
	s := open(t, c.Workers[0], cryptotest.Identity(t, c.CA, cryptotest.ProxyURI))
	var ops []*cryptov1.Operation
	for i := range uint64(wire.MaxBatch) {
		ops = append(ops, operation(t, i, []string{"P-256", "RSA-2048"}[min(i%16, 1)^1]))
	}
	ops[3].KeyId = ops[3].KeyId[:5]
	ops[4] = operation(t, 4, "P-256")
	ops[4].Scheme = 1 << 20
	for id, r := range ask(t, s, ops...) {
		want := cryptov1.Status_STATUS_OK
		switch id {
		case 3:
			want = cryptov1.Status_STATUS_BAD_INPUT
		case 4:
			want = cryptov1.Status_STATUS_BAD_SCHEME
		}
		if r.Status != want {
			t.Errorf("operation %d: %v %s", id, r.Status, r.Text)
		}
	}
	if err := s.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %v", err)
	}
}

// Keys that sign TLS 1.3 only sign what the worker itself has built.
func TestTLS13Only(t *testing.T) {
	c := cryptotest.New(t, 0, cryptotest.AllowAll)
	cryptotest.Import(t, c.Store, "RSA-2048", keystore.Options{Name: "k", TLS13Only: true})
	w := c.Start(t, "a", cryptotest.AllowAll, "")
	id := cryptotest.Identity(t, c.CA, cryptotest.ProxyURI)
	s := open(t, w, id)
	transcript := operation(t, 2, "RSA-2048")
	transcript.Input = cryptov1.Input_INPUT_TLS13_SERVER
	got := ask(t, s, operation(t, 1, "RSA-2048"), transcript)
	if got[1].Status != cryptov1.Status_STATUS_DENIED {
		t.Errorf("a digest: %v", got[1])
	}
	content := sha256.Sum256(signing.Content13(signing.TLS13Server, transcript.Data))
	pub := enginetest.Key(t, "RSA-2048").Public
	if err := signing.Verify(pub, &signing.Task{Scheme: signing.RSAPSSSHA256, Data: content[:]}, got[2].Data); err != nil {
		t.Errorf("a transcript: %v, %v", got[2], err)
	}
	key, err := cryptov1.NewCryptoServiceClient(dial(t, w, id)).GetKey(context.Background(), &cryptov1.GetKeyRequest{KeyId: transcript.KeyId})
	if err != nil || !key.Tls13Only || !bytes.Equal(transcript.KeyId, func() []byte { k := signing.IDOf(key.Spki); return k[:] }()) {
		t.Errorf("%v, %v", key, err)
	}
}

func TestPremaster(t *testing.T) {
	const rules = "rules:\n- {clients: [\"" + cryptotest.ProxyURI + "\"], keys: [\"*\"], tls12_premaster: true}\n"
	c := cryptotest.New(t, 1, rules, "RSA-2048")
	s := open(t, c.Workers[0], cryptotest.Identity(t, c.CA, cryptotest.ProxyURI))
	secret := append([]byte{3, 3}, make([]byte, 46)...)
	ct, err := rsa.EncryptPKCS1v15(rand.Reader, enginetest.Key(t, "RSA-2048").Public.(*rsa.PublicKey), secret) //nolint:staticcheck // it is what TLS-RSA does
	if err != nil {
		t.Fatal(err)
	}
	op := func(id uint64, data []byte) *cryptov1.Operation {
		o := operation(t, id, "RSA-2048")
		o.Input, o.Scheme, o.Data = cryptov1.Input_INPUT_TLS12_PREMASTER, 0x0303, data
		return o
	}
	bad := bytes.Clone(ct)
	bad[100] ^= 1
	got := ask(t, s, op(1, ct), op(2, bad), op(3, ct[:200]))
	if !bytes.Equal(got[1].Data, secret) {
		t.Errorf("got %v", got[1])
	}
	if got[2].Status != cryptov1.Status_STATUS_OK || len(got[2].Data) != 48 || got[2].Text != "" {
		t.Errorf("bad padding shows: %v", got[2])
	}
	if got[3].Status != cryptov1.Status_STATUS_BAD_INPUT {
		t.Errorf("got %v", got[3])
	}
}

// A right that ends ends at once, on streams that are open too.
func TestRevocation(t *testing.T) {
	c := cryptotest.New(t, 1, cryptotest.AllowAll, "P-256")
	w := c.Workers[0]
	files := mtls.Files{Cert: t.TempDir() + "/c", Key: t.TempDir() + "/k", CA: t.TempDir() + "/a"}
	cert := c.CA.IssueInto(t, files, cryptotest.ProxyURI, time.Hour)
	id, err := mtls.Load(files)
	if err != nil {
		t.Fatal(err)
	}
	s := open(t, w, id)
	if got := ask(t, s, operation(t, 1, "P-256")); got[1].Status != cryptov1.Status_STATUS_OK {
		t.Fatal(got)
	}
	set := func(text string) {
		t.Helper()
		r, err := acl.Parse("acl", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		w.Server.SetRules(r)
	}
	set("rules: []")
	if got := ask(t, s, operation(t, 2, "P-256")); got[2].Status != cryptov1.Status_STATUS_DENIED {
		t.Errorf("without a rule: %v", got)
	}
	set(cryptotest.AllowAll)
	if got := ask(t, s, operation(t, 3, "P-256")); got[3].Status != cryptov1.Status_STATUS_OK {
		t.Errorf("with the rule again: %v", got)
	}
	set(cryptotest.AllowAll + fmt.Sprintf("revoked: [\"serial:%x\"]\n", cert.SerialNumber))
	if _, err := s.Recv(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("the stream of a revoked certificate: %v", err)
	}
	again, err := cryptov1.NewCryptoServiceClient(dial(t, w, id)).Operate(context.Background())
	if err == nil {
		_, err = again.Recv()
	}
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("a new stream: %v", err)
	}
}

func TestExpiryOfOpenStreams(t *testing.T) {
	c := cryptotest.New(t, 1, cryptotest.AllowAll, "P-256")
	id, err := mtls.Load(c.CA.Issue(t, cryptotest.ProxyURI, 2*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	s := open(t, c.Workers[0], id)
	start := time.Now()
	if _, err := s.Recv(); status.Code(err) != codes.PermissionDenied || time.Since(start) > 20*time.Second {
		t.Errorf("%v after %v", err, time.Since(start))
	}
}

func TestStrangers(t *testing.T) {
	c := cryptotest.New(t, 1, cryptotest.AllowAll, "P-256")
	w := c.Workers[0]
	for name, files := range map[string]mtls.Files{
		"foreign": mtlstest.NewAuthority(t).Issue(t, cryptotest.ProxyURI, time.Hour),
		"expired": c.CA.Issue(t, cryptotest.ProxyURI, -time.Minute),
	} {
		id, err := mtls.Load(files)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		s, err := cryptov1.NewCryptoServiceClient(dial(t, w, id)).Operate(ctx)
		if err == nil {
			_, err = s.Recv()
		}
		cancel()
		if err == nil {
			t.Errorf("%s: let in", name)
		}
	}
	// Noise on the port.
	raw, err := net.Dial("tcp", w.Link.Addr())
	if err != nil {
		t.Fatal(err)
	}
	_, _ = raw.Write([]byte("GET / HTTP/1.1\r\n\r\n"))
	_ = raw.SetReadDeadline(time.Now().Add(20 * time.Second))
	_, _ = io.ReadAll(raw)
	raw.Close()

	s := open(t, w, cryptotest.Identity(t, c.CA, cryptotest.ProxyURI))
	if got := ask(t, s, operation(t, 1, "P-256")); got[1].Status != cryptov1.Status_STATUS_OK {
		t.Errorf("got %v", got)
	}
	if n := metric(t, w, "pno_crypto_refused_handshakes_total"); n < 3 {
		t.Errorf("%v refused handshakes counted", n)
	}
}

// metric is the value of a counter or gauge without labels.
func metric(t *testing.T, w *cryptotest.Worker, name string) float64 {
	t.Helper()
	families, err := w.Server.Registry().Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.Metric[0].GetCounter().GetValue() + f.Metric[0].GetGauge().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

func TestOversize(t *testing.T) {
	c := cryptotest.New(t, 1, cryptotest.AllowAll, "P-256")
	id := cryptotest.Identity(t, c.CA, cryptotest.ProxyURI)
	other := open(t, c.Workers[0], id)
	for name, n := range map[string]int{"operations": wire.MaxBatch + 1, "bytes": 1} {
		s := open(t, c.Workers[0], id)
		ops := make([]*cryptov1.Operation, n)
		for i := range ops {
			ops[i] = operation(t, uint64(i), "P-256")
		}
		if n == 1 {
			ops[0].Data = make([]byte, wire.MaxMessage+1)
		}
		if err := s.Send(&cryptov1.OperateRequest{Operations: ops}); err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		if _, err := s.Recv(); status.Code(err) != codes.InvalidArgument && status.Code(err) != codes.ResourceExhausted {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := ask(t, other, operation(t, 1, "P-256")); got[1].Status != cryptov1.Status_STATUS_OK {
		t.Errorf("another stream was disturbed: %v", got)
	}
	// gRPC may answer for the handler, which counts a moment later.
	counted := func() float64 { return metric(t, c.Workers[0], "pno_crypto_malformed_requests_total") }
	eventually(t, "counted", func() bool { return counted() >= 2 })
	if n := counted(); n != 2 {
		t.Errorf("%v counted", n)
	}
}

// Keys come and go while the worker runs.
func TestKeyReload(t *testing.T) {
	c := cryptotest.New(t, 1, cryptotest.AllowAll, "P-256")
	w := c.Workers[0]
	s := open(t, w, cryptotest.Identity(t, c.CA, cryptotest.ProxyURI))
	if got := ask(t, s, operation(t, 1, "RSA-2048")); got[1].Status != cryptov1.Status_STATUS_UNKNOWN_KEY {
		t.Errorf("got %v", got)
	}
	e := cryptotest.Import(t, c.Store, "RSA-2048", keystore.Options{Name: "late"})
	if change, err := w.Server.LoadKeys(c.Store); err != nil || change.Added != 1 || change.Kept != 1 {
		t.Errorf("%+v, %v", change, err)
	}
	if got := ask(t, s, operation(t, 2, "RSA-2048")); got[2].Status != cryptov1.Status_STATUS_OK {
		t.Errorf("got %v", got)
	}
	// A file that cannot be read must not take the key away.
	good, err := os.ReadFile(e.Path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(e.Path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Server.LoadKeys(c.Store); err == nil {
		t.Error("a damaged file was not told")
	}
	if got := ask(t, s, operation(t, 3, "RSA-2048")); got[3].Status != cryptov1.Status_STATUS_OK {
		t.Errorf("got %v", got)
	}
	if err := os.WriteFile(e.Path, good, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.Store.Remove(e); err != nil {
		t.Fatal(err)
	}
	if change, err := w.Server.LoadKeys(c.Store); err != nil || change.Removed != 1 {
		t.Errorf("%+v, %v", change, err)
	}
	if got := ask(t, s, operation(t, 4, "RSA-2048")); got[4].Status != cryptov1.Status_STATUS_UNKNOWN_KEY {
		t.Errorf("got %v", got)
	}
}

// A key goes with its file, whatever else is wrong with the store.
func TestKeyRemovedFromDamagedStore(t *testing.T) {
	c := cryptotest.New(t, 1, cryptotest.AllowAll, "P-256")
	w := c.Workers[0]
	s := open(t, w, cryptotest.Identity(t, c.CA, cryptotest.ProxyURI))
	all, err := c.Store.List()
	if err != nil || len(all) != 1 {
		t.Fatal(all, err)
	}
	for _, junk := range []string{"junk", strings.Repeat("0", 64)} {
		if err := os.WriteFile(filepath.Join(c.Dir, junk+keystore.Suffix), []byte("junk"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if change, err := w.Server.LoadKeys(c.Store); err == nil || change.Kept != 1 {
		t.Errorf("%+v, %v", change, err)
	}
	if n := metric(t, w, "pno_crypto_key_errors"); n != 2 {
		t.Errorf("%v keys told as bad, want 2", n)
	}
	cryptotest.Import(t, c.Store, "RSA-2048", keystore.Options{Name: "late"})
	if err := c.Store.Remove(all[0]); err != nil {
		t.Fatal(err)
	}
	if change, err := w.Server.LoadKeys(c.Store); err == nil || change.Removed != 1 || change.Added != 1 {
		t.Errorf("%+v, %v", change, err)
	}
	got := ask(t, s, operation(t, 1, "P-256"), operation(t, 2, "RSA-2048"))
	if got[1].Status != cryptov1.Status_STATUS_UNKNOWN_KEY || got[2].Status != cryptov1.Status_STATUS_OK {
		t.Errorf("removed: %v; added: %v", got[1], got[2])
	}
}

// Drain answers what is open, and what comes before the client knows, and ends.
func TestDrain(t *testing.T) {
	c := cryptotest.New(t, 1, cryptotest.AllowAll, "P-256")
	w := c.Workers[0]
	id := cryptotest.Identity(t, c.CA, cryptotest.ProxyURI)
	health := healthpb.NewHealthClient(dial(t, w, id))
	if r, err := health.Check(context.Background(), &healthpb.HealthCheckRequest{}); err != nil || r.Status != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("%v, %v", r, err)
	}
	s := open(t, w, id)
	w.Fault.Stall()
	if err := s.Send(&cryptov1.OperateRequest{Operations: []*cryptov1.Operation{operation(t, 1, "P-256")}}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "begun", func() bool { return w.Fault.Held() > 0 })
	drained := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		drained <- w.Server.Drain(ctx)
	}()
	resp, err := s.Recv()
	if err != nil || resp.Worker == nil || !resp.Worker.Draining {
		t.Fatalf("%v, %v", resp, err)
	}
	if err := s.Send(&cryptov1.OperateRequest{Operations: []*cryptov1.Operation{operation(t, 2, "P-256")}}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "both begun", func() bool { return w.Fault.Held() > 1 })
	w.Fault.Clear()
	for answered := 0; answered < 2; {
		resp, err = s.Recv()
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range resp.Results {
			if answered++; r.Status != cryptov1.Status_STATUS_OK {
				t.Errorf("operation %d: %v", r.Id, r)
			}
		}
	}
	if err := s.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if err := <-drained; err != nil {
		t.Error(err)
	}
}

// Every operation has a record, those that were refused too.
func TestAudit(t *testing.T) {
	c := cryptotest.New(t, 1, cryptotest.AllowAll, "P-256")
	w := c.Workers[0]
	s := open(t, w, cryptotest.Identity(t, c.CA, cryptotest.ProxyURI))
	ask(t, s, operation(t, 1, "P-256"), operation(t, 2, "RSA-2048"))
	var v audit.Verifier
	for deadline := time.Now().Add(20 * time.Second); v.Records < 2; {
		if time.Now().After(deadline) {
			t.Fatalf("%+v", v.Summary)
		}
		time.Sleep(5 * time.Millisecond)
		text, err := os.ReadFile(w.Audit)
		if err != nil {
			t.Fatal(err)
		}
		v = audit.Verifier{}
		if err := v.Verify("audit", strings.NewReader(string(text))); err != nil {
			t.Fatal(err)
		}
	}
	if v.Statuses["ok"] != 1 || v.Statuses["unknown_key"] != 1 {
		t.Errorf("%+v", v.Summary)
	}
}

// broken fails, or signs wrongly, and can hold so much.
type broken struct {
	sink engine.Sink
	room int
	out  []byte
	err  error
}

type noKey struct{}

func (noKey) Close() {}

func (b broken) Info() engine.Info                        { return engine.Info{Kind: "broken", Capacity: b.room} }
func (b broken) Load(engine.Material) (engine.Key, error) { return noKey{}, nil }
func (b broken) Close() error                             { return nil }

func (b broken) Submit(ops []*engine.Op) int {
	n := min(b.room, len(ops))
	for _, op := range ops[:n] {
		op.Out, op.Err = b.out, b.err
	}
	b.sink(ops[:n])
	return n
}

// An engine that is full, fails or signs wrongly is made up for by the next, and
// nothing wrong leaves the worker when there is none.
func TestEngineFailures(t *testing.T) {
	c := cryptotest.New(t, 0, cryptotest.AllowAll, "RSA-2048")
	id := cryptotest.Identity(t, c.CA, cryptotest.ProxyURI)
	fault := func(room int, out []byte, err error) server.Opener {
		return func(sink engine.Sink) (engine.Engine, error) { return broken{sink, room, out, err}, nil }
	}
	wrong := fault(100, make([]byte, 256), nil)
	for name, tt := range map[string]struct {
		engines []server.Opener
		want    cryptov1.Status
	}{
		"full, good":        {[]server.Opener{fault(0, nil, nil), cryptotest.Software}, cryptov1.Status_STATUS_OK},
		"fails, good":       {[]server.Opener{fault(100, nil, errors.New("dead")), cryptotest.Software}, cryptov1.Status_STATUS_OK},
		"wrong, good":       {[]server.Opener{wrong, cryptotest.Software}, cryptov1.Status_STATUS_OK},
		"wrong, fails, bad": {[]server.Opener{wrong, fault(100, nil, errors.New("dead"))}, cryptov1.Status_STATUS_INTERNAL},
		"wrong alone":       {[]server.Opener{wrong}, cryptov1.Status_STATUS_INTERNAL},
		"full alone":        {[]server.Opener{fault(0, nil, nil)}, cryptov1.Status_STATUS_OVERLOADED},
	} {
		t.Run(name, func(t *testing.T) {
			w := c.StartWith(t, "x", cryptotest.AllowAll, "", tt.engines...)
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			s, err := cryptov1.NewCryptoServiceClient(dial(t, w, id)).Operate(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.Recv(); err != nil {
				t.Fatal(err)
			}
			for _, r := range ask(t, s, operation(t, 1, "RSA-2048"), operation(t, 2, "RSA-2048")) {
				if r.Status != tt.want || r.Status != cryptov1.Status_STATUS_OK && r.Data != nil {
					t.Errorf("got %v, want %v", r, tt.want)
				}
			}
		})
	}
}

// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"pno/crypto/audit"
	"pno/crypto/cryptotest"
	"pno/crypto/mtls"
	"pno/crypto/mtls/mtlstest"
	"pno/crypto/signing"
	"pno/crypto/wire"
	cryptov1 "pno/proto/pno/crypto/v1"
)

// Whatever a client does wrong has a typed answer, is counted and audited, and
// disturbs nobody else: between any two of these, another stream is served.
func TestBadInput(t *testing.T) {
	const other = "spiffe://pno.test/proxy/2"
	c := cryptotest.New(t, 1, fmt.Sprintf("rules:\n- {clients: [%q], keys: [\"*\"], schemes: [rsa_pss_rsae_sha256]}\n"+
		"- {clients: [%q], keys: [RSA-2048], rate: 1, burst: 3}\n", cryptotest.ProxyURI, other), "RSA-2048", "P-256")
	w := c.Workers[0]
	id := cryptotest.Identity(t, c.CA, cryptotest.ProxyURI)
	good, limited := open(t, w, id), open(t, w, cryptotest.Identity(t, c.CA, other))

	answered := func(s cryptov1.CryptoService_OperateClient, kind string, change func(*cryptov1.Operation)) func() error {
		return func() error {
			op := operation(t, 1, kind)
			change(op)
			return asError(ask(t, s, op)[1])
		}
	}
	ended := func(change func(*cryptov1.OperateRequest)) func() error {
		return func() error {
			s := open(t, w, id)
			req := &cryptov1.OperateRequest{Operations: []*cryptov1.Operation{operation(t, 1, "RSA-2048")}}
			change(req)
			_ = s.Send(req) // what comes of it is received
			_, err := s.Recv()
			return err
		}
	}
	refused := func(files mtls.Files) func() error {
		return func() error {
			id, err := mtls.Load(files)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			s, err := cryptov1.NewCryptoServiceClient(dial(t, w, id)).Operate(ctx)
			if err == nil {
				_, err = s.Recv()
			}
			return err
		}
	}
	for _, tt := range []struct {
		name   string
		do     func() error
		typed  any    // a signing.Status or a codes.Code
		metric string // that counts it
		audit  string // its status there
	}{
		{"unknown key", answered(good, "RSA-2048", func(o *cryptov1.Operation) { o.KeyId[0] ^= 1 }), signing.UnknownKey, "", "unknown_key"},
		{"forbidden key and scheme", answered(good, "P-256", func(*cryptov1.Operation) {}), signing.Denied, "", "denied"},
		{"unknown scheme", answered(good, "RSA-2048", func(o *cryptov1.Operation) { o.Scheme = 0x0101 }), signing.BadScheme, "", "bad_scheme"},
		{"digest of another length", answered(good, "RSA-2048", func(o *cryptov1.Operation) { o.Data = o.Data[:31] }), signing.BadInput, "", "bad_input"},
		{"a raw RSA block", answered(good, "RSA-2048", func(o *cryptov1.Operation) { o.Data = make([]byte, 256) }), signing.BadInput, "", "bad_input"},
		{"decryption", answered(good, "RSA-2048", func(o *cryptov1.Operation) {
			o.Input, o.Scheme, o.Data = cryptov1.Input_INPUT_TLS12_PREMASTER, 0x0303, make([]byte, 256)
		}), signing.Denied, "", "denied"},
		{"flood", func() (err error) {
			for range 20 {
				err = answered(limited, "RSA-2048", func(*cryptov1.Operation) {})()
			}
			return err
		}, signing.RateLimited, "", "rate_limited"},
		{"too many operations", ended(func(r *cryptov1.OperateRequest) {
			for len(r.Operations) <= wire.MaxBatch {
				r.Operations = append(r.Operations, r.Operations[0])
			}
		}), codes.InvalidArgument, "pno_crypto_malformed_requests_total", "bad_input"},
		{"too many bytes", ended(func(r *cryptov1.OperateRequest) { r.Operations[0].Data = make([]byte, wire.MaxMessage+1) }),
			codes.ResourceExhausted, "pno_crypto_malformed_requests_total", "bad_input"},
		{"expired certificate", refused(c.CA.Issue(t, cryptotest.ProxyURI, -time.Minute)), codes.Unavailable, "pno_crypto_refused_handshakes_total", "denied"},
		{"foreign certificate", refused(mtlstest.NewAuthority(t).Issue(t, cryptotest.ProxyURI, time.Hour)), codes.Unavailable, "pno_crypto_refused_handshakes_total", "denied"},
		{"a certificate of nobody", func() error { return nobody(t, c, w) }, codes.Unavailable, "pno_crypto_refused_handshakes_total", "denied"},
		{"garbage", func() error { return garbage(w.Link.Addr()) }, nil, "pno_crypto_refused_handshakes_total", "denied"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			counter := func() float64 {
				if tt.metric != "" {
					return metric(t, w, tt.metric)
				}
				return operations(t, w, tt.audit)
			}
			audited, counted := statuses(t, w)[tt.audit], counter()
			err := tt.do()
			switch want := tt.typed.(type) {
			case signing.Status:
				if signing.StatusOf(err) != want {
					t.Errorf("answered %v, want %v", err, want)
				}
			case codes.Code:
				if status.Code(err) != want {
					t.Errorf("ended with %v, want %v", err, want)
				}
			default:
				if err == nil {
					t.Error("taken")
				}
			}
			if tt.audit != "" {
				eventually(t, "counted", func() bool { return counter() > counted })
				eventually(t, "audited", func() bool { return statuses(t, w)[tt.audit] > audited })
			}
			if got := ask(t, good, operation(t, 9, "RSA-2048")); got[9].Status != cryptov1.Status_STATUS_OK {
				t.Errorf("another stream is disturbed: %v", got)
			}
		})
	}
}

func asError(r *cryptov1.Result) error {
	if r.Status == cryptov1.Status_STATUS_OK {
		return nil
	}
	return signing.Errorf(signing.Status(r.Status), "%s", r.Text)
}

// nobody is a client whose certificate is of the right authority, and names no
// one. Our own client would not even load it.
func nobody(t *testing.T, c *cryptotest.Cluster, w *cryptotest.Worker) error {
	files := c.CA.Issue(t, "", time.Hour)
	cert, err := tls.LoadX509KeyPair(files.Cert, files.Key)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient("passthrough:///"+w.Link.Addr(),
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{cert}, InsecureSkipVerify: true})))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	s, err := cryptov1.NewCryptoServiceClient(conn).Operate(ctx)
	if err == nil {
		_, err = s.Recv()
	}
	return err
}

func garbage(addr string) error {
	raw, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer raw.Close()
	_, _ = raw.Write([]byte("GET / HTTP/1.1\r\n\r\n"))
	_ = raw.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.ReadAll(raw); err != nil {
		return err
	}
	return io.EOF
}

func operations(t *testing.T, w *cryptotest.Worker, status string) float64 {
	t.Helper()
	n, _ := operationsOf(t, w, status)
	return n
}

// operationsOf also tells whether any operation has ended in the status.
func operationsOf(t *testing.T, w *cryptotest.Worker, status string) (float64, bool) {
	t.Helper()
	families, err := w.Server.Registry().Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.Metric {
			if f.GetName() == "pno_crypto_operations_total" && m.Label[0].GetValue() == status {
				return m.GetCounter().GetValue(), true
			}
		}
	}
	return 0, false
}

// statuses are those of the worker's audit log, which verifies.
func statuses(t *testing.T, w *cryptotest.Worker) map[string]uint64 {
	t.Helper()
	text, err := os.ReadFile(w.Audit)
	if err != nil {
		t.Fatal(err)
	}
	text = text[:strings.LastIndexByte(string(text), '\n')+1] // a line may be on its way
	var v audit.Verifier
	if err := v.Verify("audit", strings.NewReader(string(text))); err != nil {
		t.Fatal(err)
	}
	return v.Statuses
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !is(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Errorf("not %s", what)
			return
		}
	}
}

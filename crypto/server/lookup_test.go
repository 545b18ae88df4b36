// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"context"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"pno/crypto/cryptotest"
	"pno/crypto/engine/enginetest"
	cryptov1 "pno/proto/pno/crypto/v1"
)

// ended is how many operations ended in a status.
func ended(t *testing.T, w *cryptotest.Worker, status string) float64 {
	t.Helper()
	if n, ok := operationsOf(t, w, status); ok {
		return n
	}
	t.Fatalf("no operations of status %s", status)
	return 0
}

// Whoever asks for a key that it may not use, or that is not there, has left a
// trace, though no operation followed; whoever asks too often is refused.
func TestRefusedLookups(t *testing.T) {
	const rules = "rules:\n- {clients: [\"" + cryptotest.ProxyURI + "\"], keys: [P-256]}\n"
	c := cryptotest.New(t, 1, rules, "P-256", "RSA-2048")
	w := c.Workers[0]
	client := cryptov1.NewCryptoServiceClient(dial(t, w, cryptotest.Identity(t, c.CA, cryptotest.ProxyURI)))
	get := func(id []byte) codes.Code {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_, err := client.GetKey(ctx, &cryptov1.GetKeyRequest{KeyId: id})
		return status.Code(err)
	}
	mine, others := enginetest.Key(t, "P-256").ID, enginetest.Key(t, "RSA-2048").ID
	if code := get(mine[:]); code != codes.OK {
		t.Errorf("the client's own key: %v", code)
	}
	for _, tt := range []struct {
		status string
		id     []byte
		want   codes.Code
	}{
		{"denied", others[:], codes.PermissionDenied},
		{"unknown_key", make([]byte, 32), codes.NotFound},
		{"bad_input", mine[:5], codes.InvalidArgument},
	} {
		if code := get(tt.id); code != tt.want {
			t.Errorf("%s: %v", tt.status, code)
		}
		if n := ended(t, w, tt.status); n != 1 {
			t.Errorf("%s: counted %v", tt.status, n)
		}
		eventually(t, tt.status+" is audited", func() bool { return statuses(t, w)[tt.status] == 1 })
	}
	if n := statuses(t, w)["ok"]; n != 0 {
		t.Errorf("%v operations recorded that nobody asked for", n)
	}
}

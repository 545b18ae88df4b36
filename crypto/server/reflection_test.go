// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	"pno/crypto/cryptotest"
	"pno/crypto/server"
)

// Reflection is there when it is asked for, and not otherwise.
func TestReflection(t *testing.T) {
	c := cryptotest.New(t, 0, cryptotest.AllowAll, "P-256")
	for _, on := range []bool{false, true} {
		w := c.StartTuned(t, "a", cryptotest.AllowAll, "", func(cfg *server.Config) { cfg.Reflection = on }, cryptotest.Software)
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		s, err := reflectionv1.NewServerReflectionClient(dial(t, w, cryptotest.Identity(t, c.CA, cryptotest.ProxyURI))).ServerReflectionInfo(ctx)
		if err != nil {
			t.Fatal(err)
		}
		// What fails here tells Recv why.
		_ = s.Send(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{}})
		resp, err := s.Recv()
		if !on {
			if status.Code(err) != codes.Unimplemented {
				t.Errorf("without reflection: %v, %v", resp, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("with reflection: %v", err)
			continue
		}
		var names []string
		for _, one := range resp.GetListServicesResponse().GetService() {
			names = append(names, one.Name)
		}
		if !slices.Contains(names, "pno.crypto.v1.CryptoService") {
			t.Errorf("services: %v", names)
		}
	}
}

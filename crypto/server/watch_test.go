// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"pno/crypto/acl"
	"pno/crypto/cryptotest"
	"pno/crypto/server"
)

// Watches of the health service are streams like those of operations: so many for
// a client that no rule names, counted and recorded beyond that; they end with their
// client's right, and a drain does not wait for them.
func TestWatches(t *testing.T) {
	c := cryptotest.New(t, 0, cryptotest.AllowAll, "P-256")
	w := c.StartTuned(t, "a", cryptotest.AllowAll, "", func(cfg *server.Config) {
		cfg.Limits = server.Limits{ClientStreams: 3}
	}, cryptotest.Software)
	const nobody = "spiffe://pno.test/nobody"
	id := cryptotest.Identity(t, c.CA, nobody)
	health := healthpb.NewHealthClient(dial(t, w, id))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	watch := func() (healthpb.Health_WatchClient, error) {
		s, err := health.Watch(ctx, &healthpb.HealthCheckRequest{})
		if err == nil {
			_, err = s.Recv()
		}
		return s, err
	}
	var open []healthpb.Health_WatchClient
	for i, want := range []codes.Code{codes.OK, codes.OK, codes.OK, codes.ResourceExhausted, codes.ResourceExhausted} {
		s, err := watch()
		if status.Code(err) != want {
			t.Fatalf("watch %d: %v, want %v", i+1, err, want)
		}
		open = append(open, s)
	}
	if _, err := health.Check(ctx, &healthpb.HealthCheckRequest{}); err != nil {
		t.Errorf("a check beside them: %v", err)
	}
	eventually(t, "the two are in the audit log", func() bool { return statuses(t, w)["overloaded"] == 2 })

	cert, err := tls.LoadX509KeyPair(id.Files().Cert, id.Files().Key)
	if err != nil {
		t.Fatal(err)
	}
	rules, err := acl.Parse("acl", fmt.Appendf(nil, "rules: []\nrevoked: [\"serial:%x\"]\n", cert.Leaf.SerialNumber))
	if err != nil {
		t.Fatal(err)
	}
	w.Server.SetRules(rules)
	for i, s := range open[:3] {
		if _, err := s.Recv(); status.Code(err) != codes.PermissionDenied {
			t.Errorf("watch %d of a revoked client: %v", i+1, err)
		}
	}

	health = healthpb.NewHealthClient(dial(t, w, cryptotest.Identity(t, c.CA, cryptotest.ProxyURI)))
	s, err := watch()
	if err != nil {
		t.Fatal(err)
	}
	drained := make(chan error, 1)
	go func() { drained <- w.Server.Drain(ctx) }()
	for err == nil { // that it does not serve any more may come first
		_, err = s.Recv()
	}
	if status.Code(err) != codes.Unavailable {
		t.Errorf("a watch when the worker drains: %v", err)
	}
	if err := <-drained; err != nil || ctx.Err() != nil {
		t.Errorf("drain: %v, %v", err, ctx.Err())
	}
}

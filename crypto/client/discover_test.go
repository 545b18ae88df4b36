// SPDX-License-Identifier: Apache-2.0

package client_test

import (
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"

	"pno/crypto/client"
	"pno/crypto/cryptotest"
	"pno/crypto/signing"
)

// streamsOf is how many streams a worker has.
func streamsOf(t *testing.T, w *cryptotest.Worker) float64 {
	t.Helper()
	families, err := w.Server.Registry().Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "pno_crypto_streams" {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Fatal("no metric of streams")
	return 0
}

// Workers come and go with the resolver's answers; one that stays keeps its
// streams, and an empty answer changes nothing.
func TestResolverChanges(t *testing.T) {
	c := cryptotest.New(t, 3, cryptotest.AllowAll, "P-256")
	answers := manual.NewBuilderWithScheme("pnotest")
	state := func(workers ...int) resolver.State {
		var s resolver.State
		for _, i := range workers {
			s.Endpoints = append(s.Endpoints, resolver.Endpoint{Addresses: []resolver.Address{{Addr: c.Workers[i].Link.Addr()}}})
		}
		return s
	}
	answers.InitialState(state(0, 1))
	resolver.Register(answers)
	cl := connect(t, c, func(cfg *client.Config) { cfg.Workers = []string{"pnotest:///workers"} })
	check := func(workers ...int) {
		t.Helper()
		var want []string
		for _, i := range workers {
			want = append(want, c.Workers[i].Link.Addr())
		}
		slices.Sort(want)
		right := func() bool {
			var got []string
			for _, w := range cl.Stats().Workers {
				if !w.Connected {
					return false
				}
				got = append(got, w.Address)
			}
			slices.Sort(got)
			for i, w := range c.Workers { // also as they see it
				if (streamsOf(t, w) > 0) != slices.Contains(workers, i) {
					return false
				}
			}
			return slices.Equal(got, want)
		}
		for deadline := time.Now().Add(20 * time.Second); !right(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("workers %+v, want %v", cl.Stats().Workers, want)
			}
		}
		for range 5 {
			if _, err := cl.Do(soon(), opFor(t, "P-256", signing.ECDSAP256SHA256)); err != nil {
				t.Error(err)
			}
		}
	}
	check(0, 1)
	answers.UpdateState(state(1, 2))
	check(1, 2)
	answers.UpdateState(state())
	check(1, 2)
	answers.UpdateState(state(2))
	check(2)
	answers.UpdateState(state(0, 1, 2, 2))
	check(0, 1, 2)
	if s := cl.Stats(); s.Failures > 0 {
		t.Errorf("%d failures", s.Failures)
	}
}

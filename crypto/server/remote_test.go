// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"net"
	"testing"
	"time"

	"pno/crypto/client"
	"pno/crypto/cryptotest"
	"pno/crypto/engine"
	"pno/crypto/engine/remote"
	"pno/crypto/server"
	"pno/crypto/signing"
	cryptov1 "pno/proto/pno/crypto/v1"
)

// While the cluster of the first engine is gone, the second does everything without
// a wait; when the cluster is back the first does, and so on.
func TestRemoteClusterGone(t *testing.T) {
	c := cryptotest.New(t, 0, cryptotest.AllowAll, "P-256")
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	inner := lis.Addr().String()
	lis.Close() // nobody there yet
	const forever = time.Minute
	cluster, err := client.NewCluster(client.Config{Identity: cryptotest.Identity(t, c.CA, cryptotest.ProxyURI), Workers: []string{inner},
		WorkerIdentity: cryptotest.WorkerURI, Wait: forever})
	if err != nil {
		t.Fatal(err)
	}
	first := func(sink engine.Sink) (engine.Engine, error) {
		cl, err := client.New(forever, cluster)
		return remote.New(cl, 0, sink), err
	}
	w := c.StartWith(t, "outer", cryptotest.AllowAll, "", first, cryptotest.Software)
	s := open(t, w, cryptotest.Identity(t, c.CA, cryptotest.ProxyURI))
	id := uint64(0)
	done := func(what string) {
		t.Helper()
		id++
		begun := time.Now()
		if r := ask(t, s, operation(t, id, "P-256"))[id]; r.Status != cryptov1.Status_STATUS_OK {
			t.Fatalf("%s: %v", what, r)
		}
		if took := time.Since(begun); took > forever/6 {
			t.Errorf("%s: it took %v", what, took)
		}
	}
	byInner := func() uint64 { st := cluster.Stats(); return st.Operations - st.Failures }
	for range 50 {
		done("before the cluster was ever there")
	}
	if byInner() != 0 || cluster.Stats().Failures < 50 {
		t.Errorf("%+v", cluster.Stats())
	}
	for round := range 2 {
		worker := c.Start(t, "inner", cryptotest.AllowAll, inner)
		before := byInner()
		for deadline := time.Now().Add(30 * time.Second); byInner() == before; time.Sleep(time.Millisecond) {
			if done("while it comes back"); time.Now().After(deadline) {
				t.Fatalf("round %d: the cluster is back, and nobody asks it", round)
			}
		}
		if err := worker.Server.Close(); err != nil {
			t.Fatal(err)
		}
		for range 50 {
			done("after it has gone")
		}
	}
}

// The only engine with a key is asked to be patient, the first of two is not.
func TestNextIsTold(t *testing.T) {
	c := cryptotest.New(t, 0, cryptotest.AllowAll, "P-256")
	for name, want := range map[string][]bool{"one": {false}, "two": {true, false}, "three": {true, true, false}} {
		t.Run(name, func(t *testing.T) {
			told := make(chan bool, 3)
			unable := func(sink engine.Sink) (engine.Engine, error) {
				return refusingEngine{engine.NewWorkers(1, 8, 1, func(_ int, ops []*engine.Op) {
					told <- ops[0].Next
					ops[0].Err = signing.Errorf(signing.Unavailable, "as the test wants it")
				}, sink)}, nil
			}
			engines := make([]server.Opener, len(want))
			for i := range engines {
				engines[i] = unable
			}
			w := c.StartWith(t, "a", cryptotest.AllowAll, "", engines...)
			s := open(t, w, cryptotest.Identity(t, c.CA, cryptotest.ProxyURI))
			if r := ask(t, s, operation(t, 1, "P-256"))[1]; r.Status != cryptov1.Status_STATUS_UNAVAILABLE {
				t.Errorf("%v", r)
			}
			for i, next := range want {
				if got := <-told; got != next {
					t.Errorf("engine %d of %d: another one comes after it: %v", i+1, len(want), got)
				}
			}
		})
	}
}

// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"log/slog"
	"sync/atomic"
	"testing"

	"pno/crypto/cryptotest"
	"pno/crypto/engine"
	"pno/crypto/server"
	"pno/crypto/signing"
	cryptov1 "pno/proto/pno/crypto/v1"
)

// refusing is an engine that answers all operations with one status.
type refusing struct {
	status signing.Status
	asked  atomic.Int64
}

type refusingEngine struct{ *engine.Workers }

func (r *refusing) open(sink engine.Sink) (engine.Engine, error) {
	return refusingEngine{engine.NewWorkers(1, 1024, 1, func(_ int, ops []*engine.Op) {
		for _, op := range ops {
			r.asked.Add(1)
			op.Err = signing.Errorf(r.status, "as the test wants it")
		}
	}, sink)}, nil
}

func (refusingEngine) Info() engine.Info {
	return engine.Info{Kind: "refusing", Capacity: 1024, Window: 1024, Verifies: true}
}
func (refusingEngine) Load(engine.Material) (engine.Key, error) { return anyKey{}, nil }
func (e refusingEngine) Close() error                           { e.Workers.Close(); return nil }

// What an engine cannot do, as one whose cluster is gone, the next one does; what
// is wrong with the request ends with the first. A flood of it is not one in the log.
func TestNextEngine(t *testing.T) {
	c := cryptotest.New(t, 0, cryptotest.AllowAll, "P-256")
	for _, st := range signing.Statuses[1:] {
		t.Run(st.String(), func(t *testing.T) {
			first := &refusing{status: st}
			var said lines
			w := c.StartTuned(t, "a", cryptotest.AllowAll, "", func(cfg *server.Config) {
				cfg.Log = slog.New(slog.NewTextHandler(&said, nil))
			}, first.open, cryptotest.Software)
			s := open(t, w, cryptotest.Identity(t, c.CA, cryptotest.ProxyURI))
			const n = 200
			ops := make([]*cryptov1.Operation, n)
			for i := range ops {
				ops[i] = operation(t, uint64(i+1), "P-256")
			}
			want := cryptov1.Status(st)
			switch st {
			case signing.Unavailable, signing.Overloaded, signing.Internal, signing.UnknownKey:
				want = cryptov1.Status_STATUS_OK
			}
			for id, r := range ask(t, s, ops...) {
				if r.Status != want {
					t.Errorf("operation %d: %v, want %v", id, r, want)
				}
			}
			if got := first.asked.Load(); got != n {
				t.Errorf("the first engine had %d of %d", got, n)
			}
			if got := said.n.Load(); got > n/4 {
				t.Errorf("%d lines in the log for %d faults", got, n)
			}
		})
	}
}

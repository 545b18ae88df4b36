// SPDX-License-Identifier: Apache-2.0

package client

import (
	"io"
	"log/slog"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"pno/crypto/signing"
	"pno/crypto/wire"
	cryptov1 "pno/proto/pno/crypto/v1"
)

// replay is a worker's stream with one response.
type replay struct {
	cryptov1.CryptoService_OperateClient
	resp *cryptov1.OperateResponse
}

func (r *replay) Recv() (*cryptov1.OperateResponse, error) {
	resp := r.resp
	r.resp = nil
	if resp == nil {
		return nil, io.EOF
	}
	return resp, nil
}

// Whatever bytes a worker sends: each operation that is open ends once, with an
// answer that is within bounds.
func FuzzResponse(f *testing.F) {
	for _, resp := range []*cryptov1.OperateResponse{
		{Results: []*cryptov1.Result{{Id: 1, Status: cryptov1.Status_STATUS_OK, Data: make([]byte, 256)}, {Id: 2, Status: cryptov1.Status_STATUS_DENIED, Text: "no"}}},
		{Results: []*cryptov1.Result{{Id: 1}, {Id: 1, Status: 99}, {Id: 9, Status: 1}}},
		{Worker: &cryptov1.WorkerInfo{Draining: true}},
		{Results: []*cryptov1.Result{{Id: 3, Status: cryptov1.Status_STATUS_OK, Data: make([]byte, signing.MaxOutput+1), ExecMicros: 1<<32 - 1}}},
	} {
		b, err := proto.Marshal(resp)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	c := &Cluster{cfg: Config{Log: slog.New(slog.DiscardHandler)}}
	c.workers.Store(&[]*worker{})
	f.Fuzz(func(t *testing.T, b []byte) {
		resp := &cryptov1.OperateResponse{}
		if len(b) > wire.MaxMessage || proto.Unmarshal(b, resp) != nil {
			return
		}
		const open = 4
		w := &worker{cluster: c}
		l := &link{w: w, stream: &replay{resp: resp}, cancel: func() {}, open: map[uint64]attempt{}}
		answers := make(chan answer, open)
		for id := range uint64(open) {
			l.open[id+1] = attempt{answers, time.Now()}
			w.outstanding.Add(1)
		}
		l.fail(l.receive())
		if len(answers) != open || w.outstanding.Load() != 0 {
			t.Fatalf("%d answers, %d outstanding", len(answers), w.outstanding.Load())
		}
		for range open {
			if a := <-answers; !a.broken && (a.status < signing.OK || a.status > signing.Internal || len(a.data) > signing.MaxOutput || a.exec < 0) {
				t.Fatalf("answer %+v", a)
			}
		}
	})
}

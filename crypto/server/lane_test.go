// SPDX-License-Identifier: Apache-2.0

package server

import (
	"fmt"
	"testing"

	"pno/crypto/engine"
)

// hand is an engine that keeps what it gets until it is told to answer.
type hand struct {
	engine.Engine
	info engine.Info
	has  []*engine.Op
}

func (h *hand) Info() engine.Info { return h.info }

func (h *hand) Submit(ops []*engine.Op) int {
	h.has = append(h.has, ops...)
	return len(ops)
}

// serve answers the oldest operation, and says whose it was.
func (h *hand) serve(l *lane) string {
	op := h.has[0]
	h.has = h.has[1:]
	l.took(1)
	return op.Owner.(*pending).st.client
}

func opsOf(client string, n int, micros int64) []*engine.Op {
	k := new(key)
	k.cost.Store(micros)
	out := make([]*engine.Op, n)
	for i := range out {
		out[i] = &engine.Op{Owner: &pending{st: &stream{client: client}, key: k}}
	}
	return out
}

func owners(ops []*engine.Op) map[string]int {
	out := map[string]int{}
	for _, op := range ops {
		out[op.Owner.(*pending).st.client]++
	}
	return out
}

func TestLaneTurns(t *testing.T) {
	h := &hand{info: engine.Info{Capacity: 1000, Window: 2}}
	l := newLane(h)
	if r := l.put("hog", opsOf("hog", 600, quantum)); len(r) > 0 {
		t.Fatalf("%d refused", len(r))
	}
	l.put("a", opsOf("a", 20, quantum))
	l.put("b", opsOf("b", 20, quantum))
	served := map[string]int{}
	for range 63 {
		served[h.serve(l)]++
		if len(h.has) != 2 {
			t.Fatalf("the engine has %d", len(h.has))
		}
	}
	// Two of the hog's were with the engine before anybody else came.
	if served["a"] < 19 || served["b"] < 19 {
		t.Errorf("served %v", served)
	}
	for range 600 + 40 - 63 {
		served[h.serve(l)]++
	}
	if fmt.Sprint(served) != "map[a:20 b:20 hog:600]" || l.busy() != 0 || len(l.shares) != 0 {
		t.Errorf("served %v, %d left", served, l.busy())
	}
}

// Turns are of time: who has operations that take eight times as long has an
// eighth of them.
func TestLaneCost(t *testing.T) {
	h := &hand{info: engine.Info{Capacity: 1000, Window: 1}}
	l := newLane(h)
	l.put("long", opsOf("long", 400, 8*quantum))
	l.put("short", opsOf("short", 400, quantum))
	served := map[string]int{}
	for range 270 {
		served[h.serve(l)]++
	}
	if s := served["short"]; s < 220 || s > 250 {
		t.Errorf("served %v", served)
	}
}

// Nobody who has less than an equal part is refused for one who has more.
func TestLaneFull(t *testing.T) {
	h := &hand{info: engine.Info{Capacity: 100, Window: 4}}
	l := newLane(h)
	if got := owners(l.put("hog", opsOf("hog", 500, quantum))); got["hog"] != 400 {
		t.Errorf("refused %v", got)
	}
	if got := owners(l.put("a", opsOf("a", 30, quantum))); got["hog"] != 30 || got["a"] != 0 {
		t.Errorf("refused %v", got)
	}
	if got := owners(l.put("hog", opsOf("hog", 10, quantum))); got["hog"] != 10 || got["a"] != 0 {
		t.Errorf("refused %v", got)
	}
	// Equal parts, but for one operation that it would be no use to change.
	got := owners(l.put("a", opsOf("a", 500, quantum)))
	if got["a"] < 470 || l.shares["a"].waiting() < 45 || l.shares["hog"].waiting() < 45 {
		t.Errorf("refused %v; a has %d, hog %d", got, l.shares["a"].waiting(), l.shares["hog"].waiting())
	}
	if l.busy() != 100 {
		t.Errorf("%d in the lane", l.busy())
	}
	if left := l.close(); len(left) != 96 || len(l.put("a", opsOf("a", 1, 1))) != 1 {
		t.Errorf("%d left", len(left))
	}
}

// SPDX-License-Identifier: Apache-2.0

package server

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

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
	l.took([]*engine.Op{op})
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
	// Equal parts, with what the engine has, but for one operation that it would be
	// no use to change.
	got := owners(l.put("a", opsOf("a", 500, quantum)))
	if got["a"] < 470 || l.shares["a"].has() < 45 || l.shares["hog"].has() < 45 {
		t.Errorf("refused %v; a has %d, hog %d", got, l.shares["a"].has(), l.shares["hog"].has())
	}
	if l.busy() != 100 {
		t.Errorf("%d in the lane", l.busy())
	}
	if left := l.close(); len(left) != 96 || len(l.put("a", opsOf("a", 1, 1))) != 1 {
		t.Errorf("%d left", len(left))
	}
}

// That holds with whatever the engine holds itself: also where everything of who
// has too much is with it, and none of it can be taken back.
func TestLaneFullEngine(t *testing.T) {
	for name, info := range map[string]engine.Info{
		"no window":           {Capacity: 1024},
		"queue of a window":   {Capacity: 16, Window: 16},
		"queue below window":  {Capacity: 3, Window: 32},
		"queue of one":        {Capacity: 1, Window: 1},
		"window of a quarter": {Capacity: 1024, Window: 256},
	} {
		for _, others := range []int{1, 2, 7} {
			t.Run(fmt.Sprintf("%s, %d others", name, others), func(t *testing.T) {
				h := &hand{info: info}
				l := newLane(h)
				l.put("hog", opsOf("hog", info.Capacity, quantum))
				refused, served := map[string]int{}, map[string]int{}
				for range 2000 {
					served[h.serve(l)]++
					refused["hog"] += len(l.put("hog", opsOf("hog", 1, quantum)))
					for i := range others {
						client := string(rune('a' + i))
						had := 0
						if s := l.shares[client]; s != nil {
							had = s.has()
						}
						before := busyBut(l, client)
						for _, op := range l.put(client, opsOf(client, 1, quantum)) {
							who, has := op.Owner.(*pending).st.client, had
							if who != client {
								has = l.shares[who].has() + 1
							}
							refused[who]++
							if n := len(before) + 1; has*n < info.Capacity {
								t.Fatalf("%s was refused, who had %d of %d for %d", who, has, info.Capacity, n)
							}
						}
					}
					if len(h.has) > info.Capacity || l.busy() > 2*info.Capacity+others+1 {
						t.Fatalf("the engine has %d, the lane %d", len(h.has), l.busy())
					}
				}
				if refused["hog"] == 0 {
					t.Errorf("refused %v", refused)
				}
				for i := range others {
					// Where an equal part is an operation or two, so is the difference.
					if n := served[string(rune('a'+i))]; info.Capacity > 4*(others+1) && n < (2000-info.Capacity)/(others+1)*8/10 {
						t.Errorf("served %v", served)
					}
				}
				for len(h.has) > 0 {
					h.serve(l)
				}
				if l.busy() != 0 || len(l.shares) != 0 || l.active != 0 {
					t.Errorf("%d left, %d shares, %d active", l.busy(), len(l.shares), l.active)
				}
			})
		}
	}
}

// busyBut are those who have something in the lane, without one.
func busyBut(l *lane, client string) map[string]bool {
	out := map[string]bool{}
	for c, s := range l.shares {
		if c != client && s.has() > 0 {
			out[c] = true
		}
	}
	return out
}

// Who has one long operation waiting at any time has no more of the engine's time
// for that: what it used beyond its turn it owes, though it has nothing waiting
// when that is served.
func TestLaneDebt(t *testing.T) {
	for _, tt := range []struct{ window, others, open, rounds, long int }{
		{1, 3, 50, 2000, 16},
		{1, 2, 1, 2000, 16},
		{4, 7, 1, 4000, 16},
		{4, 3, 50, 4000, 100},
		{8, 3, 400, 8000, 400},
	} {
		t.Run(fmt.Sprintf("window %d, %d others with %d each, %d quanta", tt.window, tt.others, tt.open, tt.long), func(t *testing.T) {
			h := &hand{info: engine.Info{Capacity: 2000, Window: tt.window}}
			l := newLane(h)
			for i := range tt.others {
				client := string(rune('a' + i))
				l.put(client, opsOf(client, tt.open, quantum))
			}
			long := int64(tt.long) * quantum
			micros := map[string]int64{}
			l.put("x", opsOf("x", 1, long))
			for range tt.rounds {
				c := h.serve(l)
				if c == "x" {
					micros[c] += long
				} else {
					micros[c] += quantum
					l.put(c, opsOf(c, 1, quantum))
				}
				if s := l.shares["x"]; s == nil || s.ops.len() == 0 {
					l.put("x", opsOf("x", 1, long))
				}
			}
			// One operation at either end, and what the engine had at once.
			x, a := micros["x"], micros["a"]
			if x > a+2*long+8*quantum || x < a-2*long-8*quantum {
				t.Errorf("microseconds %v", micros)
			}
		})
	}
}

// What was owed is forgotten when the engine has room and nobody waits, not
// before.
func TestLaneForgives(t *testing.T) {
	h := &hand{info: engine.Info{Capacity: 100, Window: 1}}
	l := newLane(h)
	l.put("a", opsOf("a", 2, quantum))
	l.put("x", opsOf("x", 1, 100*quantum))
	l.put("a", opsOf("a", 20, quantum))
	for h.serve(l) != "x" {
	}
	if s := l.shares["x"]; s == nil || s.has() != 0 || s.credit > -90*quantum {
		t.Fatalf("x has %+v", s)
	}
	for len(h.has) > 0 {
		h.serve(l)
	}
	if len(l.shares) != 0 || l.turn.len() != 0 {
		t.Errorf("%d shares, %d in turn", len(l.shares), l.turn.len())
	}
	l.put("a", opsOf("a", 10, quantum))
	l.put("x", opsOf("x", 1, 100*quantum))
	for i := range 4 {
		if h.serve(l) == "x" {
			return
		} else if i == 3 {
			t.Error("x was not served in its turn")
		}
	}
}

// A lane takes memory for what is in it, however long it is never empty, and
// holds on to nothing that left it.
func TestLaneMemory(t *testing.T) {
	const depth, open = 1000, 50
	h := &hand{info: engine.Info{Capacity: depth, Window: 4}}
	l := newLane(h)
	for _, c := range []string{"a", "b"} {
		l.put(c, opsOf(c, open, quantum))
	}
	for range 100_000 {
		c := h.serve(l)
		l.put(c, opsOf(c, 1, quantum))
	}
	for c, s := range l.shares {
		if n := cap(s.ops.items); n > 4*open {
			t.Errorf("%s has room for %d, of %d", c, n, s.ops.len())
		}
		left(t, c, &s.ops)
	}
	if n := cap(l.turn.items); n > 16 {
		t.Errorf("turns for %d", n)
	}
	left(t, "turn", &l.turn)

	l.put("a", opsOf("a", depth, quantum))
	l.put("b", opsOf("b", depth/2, quantum)) // for which some of a's have to go
	a := &l.shares["a"].ops
	if a.len() > depth/2 || cap(a.items) < depth-2*open {
		t.Fatalf("a has %d waiting, and room for %d", a.len(), cap(a.items))
	}
	left(t, "a", a)
	for len(h.has) > 0 {
		h.serve(l)
	}
	if len(l.spare) < 2 {
		t.Errorf("%d spare shares", len(l.spare))
	}
	for _, s := range l.spare {
		if n := cap(s.ops.items); n > 64 {
			t.Errorf("a spare share has room for %d", n)
		}
		left(t, "a spare share", &s.ops)
	}
}

// threads is an engine that answers by itself.
type threads struct {
	engine.Engine
	workers *engine.Workers
	info    engine.Info
}

func (e threads) Info() engine.Info           { return e.info }
func (e threads) Submit(ops []*engine.Op) int { return e.workers.Submit(ops) }

// Every operation comes back once, from the engine or from the lane, however many
// come and go at once; and nothing is left then.
func TestLaneConcurrent(t *testing.T) {
	for _, info := range []engine.Info{{Capacity: 8}, {Capacity: 64, Window: 4}} {
		const clients, each = 8, 4000
		e := threads{info: info}
		var l *lane
		var done, refused atomic.Int64
		e.workers = engine.NewWorkers(3, info.Capacity, 4, func(int, []*engine.Op) {}, func(ops []*engine.Op) {
			refused.Add(int64(len(l.took(ops))))
			done.Add(int64(len(ops)))
		})
		l = newLane(e)
		var all sync.WaitGroup
		for i := range clients {
			all.Go(func() {
				client := string(rune('a' + i%(clients-2)))
				for ops := opsOf(client, each, quantum); len(ops) > 0; {
					n := min(1+len(ops)%7, len(ops))
					refused.Add(int64(len(l.put(client, ops[:n]))))
					ops = ops[n:]
				}
			})
		}
		all.Wait()
		for deadline := time.Now().Add(30 * time.Second); done.Load()+refused.Load() < clients*each && time.Now().Before(deadline); {
			time.Sleep(time.Millisecond)
		}
		e.workers.Close()
		if n := done.Load() + refused.Load(); n != clients*each || done.Load() == 0 {
			t.Errorf("%+v: %d done and %d refused of %d", info, done.Load(), refused.Load(), clients*each)
		}
		if l.busy() != 0 || l.active != 0 || len(l.shares) != 0 || l.turn.len() != 0 {
			t.Errorf("%+v: %d left, %d active, %d shares, %d in turn", info, l.busy(), l.active, len(l.shares), l.turn.len())
		}
	}
}

// left looks for what a queue still holds of what left it.
func left[T any](t *testing.T, name string, f *fifo[*T]) {
	t.Helper()
	for i, v := range f.items[:cap(f.items)] {
		if v != nil && (i < f.head || i >= len(f.items)) {
			t.Errorf("%s holds on to what left it, at %d of %d to %d", name, i, f.head, len(f.items))
			return
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

//go:build !race

package shard

import "testing"

// What a turn of the loop does for itself, beside the stack and the sessions,
// makes no garbage. (Under the race detector it does.)
func TestTurnAllocates(t *testing.T) {
	h, frame := newHandover(1514), make([]byte, 1000)
	frames := batch("aabbccddeeffgghh")
	var list [64][]byte
	s, err := newSleeper()
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	idle, g, now := newIdler(20_000), gatherer{}, int64(0)
	for name, f := range map[string]func(){
		"hand-over": func() {
			for h.put(frame) {
			}
			h.publish()
			for n := h.list(list[:]); n > 0; n = h.list(list[:]) {
				h.pop(n)
			}
		},
		"split": func() { split(frames) },
		"gathering": func() {
			for now++; g.waits(now, uint64(now), now%2 == 0); now++ {
			}
		},
		"polling": func() {
			for now += 100; idle.polls(now, now%3 == 0); now += 100 {
			}
			idle.found(now)
			idle.polls(now, true)
			idle.slept(now + 50_000)
		},
		"sleep, woken before":    func() { s.prepare(); s.wake(); s.park(-1) },
		"sleep of a nap":         func() { s.prepare(); s.park(1000) },
		"sleep of naps":          func() { s.brief = true; s.prepare(); s.park(3 * firstNap) },
		"sleep by the netpoller": func() { s.brief = false; s.prepare(); s.park(3 * firstNap) },
		"look":                   func() { s.poll() },
	} {
		f()
		if n := testing.AllocsPerRun(50, f); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

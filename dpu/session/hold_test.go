// SPDX-License-Identifier: Apache-2.0

package session

import (
	"testing"

	"pno/offload"
)

const ms = int64(1e6)

// arrivals plays what comes for sockets on hold of one queue pair, and counts
// how often the host is told.
type arrivals struct {
	q     *queue
	now   int64
	tells int
}

func (a *arrivals) socket() *socket {
	return &socket{home: a.q, keep: &keep{}}
}

// come has n bytes come for s.
func (a *arrivals) come(s *socket, n int) {
	s.keep.came(a.now, n)
	a.q.cameAt = a.now
	if s.keep.since == 0 {
		s.keep.since = a.now
	}
}

// pass lets time pass, in which a host that is told of one is told of all.
func (a *arrivals) pass(d int64, socks ...*socket) {
	for end := a.now + d; a.now < end; a.now += ms / 20 {
		for _, s := range socks {
			if s.gathers() && a.now >= s.due() {
				a.tells++
				for _, s := range socks {
					if s.gathers() {
						s.keep.since = 0
						a.q.tells(a.now)
					}
				}
				a.q.telling = false
				break
			}
		}
	}
}

// Senders that take turns pause all the time: that is no reason to wake the host
// each time, nor are pauses longer than those within a burst.
func TestBulkInPiecesIsToldSeldom(t *testing.T) {
	a := &arrivals{q: &queue{}, now: 100 * ms}
	one, two := a.socket(), a.socket()
	for range 8 { // known to be bulk
		a.come(one, 64<<10)
		a.come(two, 64<<10)
	}
	a.pass(20*ms, one, two)
	a.tells = 0
	const turns = 100
	for range turns {
		a.come(one, 64<<10)
		a.pass(ms/2, one, two)
		a.come(two, 64<<10)
		a.pass(ms/2, one, two)
	}
	if most := int(turns*ms/tellEvery) + 1; a.tells > most || a.tells < most/2 {
		t.Errorf("told %d times in %d ms of bulk, want %d at most", a.tells, turns, most)
	}
}

// A crowd that shares the wire is told of more seldom still, by what was told
// lately: when one of it is left, it is no crowd any more.
func TestCrowdIsToldSeldom(t *testing.T) {
	a := &arrivals{q: &queue{}, now: 100 * ms}
	var socks []*socket
	for range 2 * crowd {
		s := a.socket()
		for range 8 {
			a.come(s, 64<<10)
		}
		socks = append(socks, s)
	}
	a.pass(20*ms, socks...)
	stream := func(socks ...*socket) (tells int) {
		a.tells = 0
		for i := range 400 {
			a.come(socks[i%len(socks)], 64<<10)
			a.pass(ms/2, socks...)
		}
		return a.tells
	}
	if n, most := stream(socks...), int(200*ms/crowdEvery)+1; n > most || n < most/2 {
		t.Errorf("a crowd was told of %d times in 200 ms, want %d at most", n, most)
	}
	stream(socks[0]) // what is left of it
	if n, most := stream(socks[0]), int(200*ms/tellEvery)+1; n > most || n < most*2/3 {
		t.Errorf("one was told of %d times in 200 ms, want about %d", n, most)
	}
}

// Only a host that was just woken while it is told of what is on hold is looked
// after without its doorbell.
func TestAnswersAreLookedFor(t *testing.T) {
	const now = 1000 * ms
	for name, c := range map[string]struct {
		toldAt, lastIntr int64
		want             bool
	}{
		"nothing on hold":   {0, now - 1, false},
		"just told":         {now - ms/10, now - ms/10, true},
		"woken for another": {now - 10*ms, now - ms/10, true},
		"woken long ago":    {now - answerWithin, now - answerWithin, false},
		"told long ago":     {now - restAfter, now - ms/10, false},
	} {
		q := &queue{toldAt: c.toldAt, lastIntr: c.lastIntr}
		if got := q.answers(now); got != c.want {
			t.Errorf("%s: looked for %v, want %v", name, got, c.want)
		}
	}
}

// When nothing comes any more nobody is kept waiting, and a small message is told
// soon, also after a large one and beside bulk.
func TestHeldIsToldSoon(t *testing.T) {
	for name, c := range map[string]struct {
		before, size int
		beside       bool
		within       int64
	}{
		"small":                      {before: 0, size: 1000, within: ms / 2},
		"small after large":          {before: 1 << 20, size: 1000, within: ms / 2},
		"large, alone":               {before: 1 << 20, size: 1 << 20, within: 2 * ms},
		"small after large, beside":  {before: 1 << 20, size: 1000, beside: true, within: firstEvery + ms},
		"small after small, beside":  {before: 1000, size: 1000, beside: true, within: ms / 2},
		"large after large, beside":  {before: 1 << 20, size: 1 << 20, beside: true, within: gatherMost + ms},
		"medium after small, beside": {before: 1000, size: 64 << 10, beside: true, within: ms / 2},
	} {
		t.Run(name, func(t *testing.T) {
			a := &arrivals{q: &queue{}, now: 100 * ms}
			s, other := a.socket(), a.socket()
			a.come(s, max(c.before, 1))
			a.pass(20*ms, s)
			s.keep.over = true
			a.q.toldAt = a.now
			a.come(s, c.size)
			began := a.now
			for s.gathers() && a.now < began+100*ms {
				if c.beside {
					a.come(other, 256<<10)
				}
				a.pass(ms/10, s, other)
			}
			if took := a.now - began; took > c.within {
				t.Errorf("told after %d us, want %d at most", took/1000, c.within/1000)
			}
		})
	}
}

// Sockets whose Moves are acknowledged with the next Held are no reason to keep
// them when they go before that, and the others are acknowledged all the same.
func TestWhoLeavesWaitsForNoHeld(t *testing.T) {
	table, hosts := served(t, 2)
	sess := table.sessions[1]
	q, other := sess.queues[0], sess.queues[1]
	const moved = offload.MoveWindow / 2
	var holds []*hold
	for i := range uint32(10) {
		full := uint64(sess.l.RxWindow) // so that nobody looks for more
		h := table.hold(sess, &socket{t: table, kind: connected, home: q, sent: full}, offload.HandleHost|i+1)
		h.sock.at = h
		h.txSeq, h.moved = moved, moved
		for range 2 {
			table.credit(h)
		}
		holds = append(holds, h)
	}
	if n := len(q.unacked); n != len(holds) {
		t.Fatalf("%d wait for company, want %d", n, len(holds))
	}
	for _, i := range []int{9, 0, 4, 5} {
		table.release(holds[i], closeOrderly)
	}
	table.claim(other, holds[2]) // by another channel, which hears of it at once
	for i, s := range q.unacked {
		if s.home != q || s.unacked != i+1 {
			t.Errorf("place %d: %+v", i, s)
		}
	}
	for _, s := range q.unacked[len(q.unacked):cap(q.unacked)] {
		if s != nil {
			t.Error("one that has left is kept")
		}
	}
	table.ackMoved(q)
	table.Flush(1)
	want := map[uint32]bool{}
	for _, i := range []int{1, 3, 6, 7, 8} {
		want[holds[i].handle] = true
	}
	for {
		rec, _, ok, err := hosts[0].Next()
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			break
		}
		if rec.Op != offload.OpTxAck || rec.Ack != moved || !want[rec.Sock] {
			t.Errorf("unexpected: %+v", rec)
		}
		delete(want, rec.Sock)
	}
	if len(want) != 0 || len(q.unacked) != 0 || holds[1].sock.unacked != 0 {
		t.Errorf("%d were not told, %d still wait", len(want), len(q.unacked))
	}
}

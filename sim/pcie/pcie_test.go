// SPDX-License-Identifier: Apache-2.0

package pcie

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"pno/offload"
)

// host is a zero-cost transport over plain memory, which notes what happens.
type host struct {
	mem    []byte
	now    *int64
	log    []string
	at     []int64
	closed bool
}

func (h *host) Post(ops ...*offload.DMA) error {
	for _, op := range ops {
		if op.Kind == offload.DMARead {
			copy(op.Buf, h.mem[op.Off:])
			h.note("read")
		} else {
			copy(h.mem[op.Off:], op.Buf)
			h.note("write")
		}
		op.Done = true
	}
	return nil
}

func (h *host) note(what string) {
	h.log = append(h.log, what)
	h.at = append(h.at, *h.now)
}
func (h *host) Poll() int64   { return 0 }
func (h *host) Interrupt(int) { h.note("interrupt") }
func (*host) DoorbellFD() int { return 5 }
func (*host) DoorbellAck()    {}
func (h *host) Close() error  { h.closed = true; return nil }

const memSize = 4096

func link(p Profile) (*Transport, *host, *int64) {
	now := new(int64)
	h := &host{mem: make([]byte, memSize), now: now}
	b := newBus(p, func() int64 { return *now })
	return b.Wrap(h, memSize), h, now
}

func read(off uint64, n int) *offload.DMA {
	return &offload.DMA{Kind: offload.DMARead, Off: off, Buf: make([]byte, n)}
}

func write(off uint64, b ...byte) *offload.DMA {
	return &offload.DMA{Kind: offload.DMAWrite, Off: off, Buf: b}
}

// complete polls, jumping to each due time, and returns when each operation
// was done.
func complete(t *testing.T, tr *Transport, now *int64, ops []*offload.DMA) []int64 {
	t.Helper()
	done := make([]int64, len(ops))
	for range 10000 {
		wait := tr.Poll()
		for i, op := range ops {
			if op.Done && done[i] == 0 {
				done[i] = *now
			}
		}
		if wait == 0 {
			return done
		}
		*now += wait
	}
	t.Fatal("never idle")
	return nil
}

func TestTiming(t *testing.T) {
	const us = time.Microsecond
	for _, c := range []struct {
		name string
		p    Profile
		ops  []*offload.DMA
		want []int64
	}{
		{"read latency", Profile{ReadLatency: 2 * us}, []*offload.DMA{read(0, 64)}, []int64{2000}},
		{"write latency", Profile{WriteLatency: us}, []*offload.DMA{write(0, 1)}, []int64{1000}},
		{"pipelined reads share the latency", Profile{ReadLatency: 2 * us},
			[]*offload.DMA{read(0, 64), read(64, 64)}, []int64{2000, 2000}},
		{"bandwidth", Profile{ReadBandwidth: 1e9},
			[]*offload.DMA{read(0, 1000), read(0, 500)}, []int64{1000, 1500}},
		{"bandwidth and latency", Profile{WriteBandwidth: 1e9, WriteLatency: us},
			[]*offload.DMA{write(0, make([]byte, 1000)...), write(0, make([]byte, 1000)...)}, []int64{2000, 3000}},
		{"directions do not share bandwidth", Profile{ReadBandwidth: 1e9, WriteBandwidth: 1e9},
			[]*offload.DMA{write(0, make([]byte, 1000)...), read(0, 1000)}, []int64{1000, 1000}},
		{"outstanding limit", Profile{ReadLatency: us, Outstanding: 2},
			[]*offload.DMA{read(0, 8), read(0, 8), read(0, 8), read(0, 8), read(0, 8)}, []int64{1000, 1000, 2000, 2000, 3000}},
		{"read waits for the write before it", Profile{ReadLatency: us, WriteLatency: 3 * us},
			[]*offload.DMA{write(0, 1), read(0, 1)}, []int64{3000, 3500}},
		{"write passes the read before it", Profile{ReadLatency: 3 * us, WriteLatency: us},
			[]*offload.DMA{read(0, 1), write(0, 1)}, []int64{3000, 1000}},
	} {
		t.Run(c.name, func(t *testing.T) {
			tr, _, now := link(c.p)
			*now = 7 // times are relative
			if err := tr.Post(c.ops...); err != nil {
				t.Fatal(err)
			}
			for i, got := range complete(t, tr, now, c.ops) {
				if got != c.want[i]+7 {
					t.Errorf("operation %d done at %d, want %d", i, got-7, c.want[i])
				}
			}
		})
	}
}

func TestProfileBandwidth(t *testing.T) {
	for _, c := range []struct {
		name   string
		lowest float64 // GB/s
		most   float64
	}{{"bluefield2", 27, 31.5}, {"bluefield3", 54, 63}} {
		t.Run(c.name, func(t *testing.T) {
			p, err := ByName(c.name)
			if err != nil {
				t.Fatal(err)
			}
			now := new(int64)
			h := &host{mem: make([]byte, 1<<20), now: now}
			tr := newBus(p, func() int64 { return *now }).Wrap(h, 1<<20)
			var ops []*offload.DMA
			for range 200 {
				ops = append(ops, read(0, 32768))
			}
			if err := tr.Post(ops...); err != nil {
				t.Fatal(err)
			}
			complete(t, tr, now, ops)
			gbps := 200 * 32768 / float64(*now)
			if gbps < c.lowest || gbps > c.most {
				t.Errorf("%.1f GB/s, want %v to %v", gbps, c.lowest, c.most)
			}
		})
	}
}

func TestSessionsShareTheLink(t *testing.T) {
	now := new(int64)
	b := newBus(Profile{ReadBandwidth: 1e9}, func() int64 { return *now })
	h := &host{mem: make([]byte, memSize), now: now}
	one, two := b.Wrap(h, memSize), b.Wrap(h, memSize)
	x, y := read(0, 1000), read(0, 1000)
	if err := errors.Join(one.Post(x), two.Post(y)); err != nil {
		t.Fatal(err)
	}
	*now = 1000
	one.Poll()
	two.Poll()
	if !x.Done || y.Done {
		t.Errorf("after one transfer time: first %v, second %v", x.Done, y.Done)
	}
	*now = 2000
	two.Poll()
	if !y.Done {
		t.Error("second not done after two transfer times")
	}
}

func TestReadSeesWhatWasWrittenBefore(t *testing.T) {
	tr, h, now := link(Profiles[1])
	h.mem[0] = 1
	r := read(0, 1)
	if err := tr.Post(write(0, 9), r); err != nil {
		t.Fatal(err)
	}
	complete(t, tr, now, []*offload.DMA{r})
	if r.Buf[0] != 9 {
		t.Errorf("read %d, want the 9 written before", r.Buf[0])
	}
}

func TestReadLooksAtHalfItsLatency(t *testing.T) {
	tr, h, now := link(Profile{ReadLatency: 1000})
	r := read(0, 1)
	if err := tr.Post(r); err != nil {
		t.Fatal(err)
	}
	*now = 499
	tr.Poll()
	h.mem[0] = 1 // in time
	*now = 500
	if wait := tr.Poll(); wait != 500 {
		t.Errorf("wait %d, want 500", wait)
	}
	h.mem[0] = 2 // too late
	if r.Done {
		t.Error("done at half the latency")
	}
	*now = 1000
	if wait := tr.Poll(); wait != 0 || !r.Done || r.Buf[0] != 1 {
		t.Errorf("wait %d, done %v, read %d", wait, r.Done, r.Buf[0])
	}
}

func TestInterruptFollowsWrites(t *testing.T) {
	tr, h, now := link(Profile{WriteLatency: 1000, InterruptLatency: 100})
	if err := tr.Post(write(0, 1)); err != nil {
		t.Fatal(err)
	}
	tr.Interrupt(0)
	if err := tr.Post(write(1, 1)); err != nil {
		t.Fatal(err)
	}
	complete(t, tr, now, nil)
	if len(h.log) != 3 || h.log[0] != "write" || h.log[1] != "interrupt" || h.log[2] != "write" {
		t.Errorf("order %v", h.log)
	}
	tr.Interrupt(0)
	from := *now
	complete(t, tr, now, nil)
	if took := *now - from; took != 100 {
		t.Errorf("interrupt after %d, want 100", took)
	}
}

func TestDoorbellDelaysTheNextOperation(t *testing.T) {
	tr, _, now := link(Profile{ReadLatency: 1000, DoorbellLatency: 300})
	if tr.DoorbellFD() != 5 {
		t.Error("doorbell descriptor is not the inner one")
	}
	tr.DoorbellAck()
	r := read(0, 8)
	if err := tr.Post(r); err != nil {
		t.Fatal(err)
	}
	if done := complete(t, tr, now, []*offload.DMA{r}); done[0] != 1300 {
		t.Errorf("done at %d, want 1300", done[0])
	}
}

func TestBounds(t *testing.T) {
	for _, c := range []struct {
		name string
		op   *offload.DMA
	}{
		{"past the end", read(memSize-4, 8)},
		{"far away", read(1<<40, 8)},
		{"offset wraps", read(^uint64(0), 8)},
		{"long line", &offload.DMA{Line: true, Buf: make([]byte, 72)}},
		{"odd line", &offload.DMA{Line: true, Off: 4, Buf: make([]byte, 8)}},
	} {
		t.Run(c.name, func(t *testing.T) {
			tr, h, now := link(Profile{ReadLatency: 10})
			good := write(0, 1)
			if err := tr.Post(good, c.op); !errors.Is(err, offload.ErrBounds) {
				t.Errorf("error %v, want ErrBounds", err)
			}
			complete(t, tr, now, nil)
			if len(h.log) != 0 {
				t.Errorf("something was started: %v", h.log)
			}
		})
	}
}

func TestCloseLetsWritesThrough(t *testing.T) {
	tr, h, _ := link(Profiles[1])
	r := read(0, 1)
	if err := tr.Post(write(0, 7), r); err != nil {
		t.Fatal(err)
	}
	if err := tr.Close(); err != nil || !h.closed {
		t.Fatalf("Close: %v, inner closed %v", err, h.closed)
	}
	if h.mem[0] != 7 || !r.Done {
		t.Errorf("memory %d, read done %v", h.mem[0], r.Done)
	}
}

// TestOrderAtRandom checks the ordering rules over random mixtures: writes
// take effect in order, and a read sees every write posted before it.
func TestOrderAtRandom(t *testing.T) {
	for seed := range uint64(50) {
		rng := rand.New(rand.NewPCG(seed, 0))
		p := Profile{
			ReadLatency: time.Duration(rng.IntN(2000)), WriteLatency: time.Duration(rng.IntN(2000)),
			ReadBandwidth: 1 + uint64(rng.IntN(1e9)), WriteBandwidth: 1 + uint64(rng.IntN(1e9)),
			Outstanding: rng.IntN(8),
		}
		tr, h, now := link(p)
		type posted struct {
			op    *offload.DMA
			least uint64
		}
		var reads []posted
		written, seen := uint64(0), uint64(0)
		for range 200 {
			switch rng.IntN(3) {
			case 0:
				written++
				if err := tr.Post(write(0, binary.LittleEndian.AppendUint64(nil, written)...)); err != nil {
					t.Fatal(err)
				}
			case 1:
				r := read(0, 8)
				reads = append(reads, posted{r, written})
				if err := tr.Post(r); err != nil {
					t.Fatal(err)
				}
			default:
				*now += int64(rng.IntN(500))
				tr.Poll()
				at := binary.LittleEndian.Uint64(h.mem)
				if at < seen {
					t.Fatalf("seed %d: memory went back from %d to %d", seed, seen, at)
				}
				seen = at
			}
		}
		complete(t, tr, now, nil)
		for i, r := range reads {
			if got := binary.LittleEndian.Uint64(r.op.Buf); !r.op.Done || got < r.least {
				t.Fatalf("seed %d: read %d saw %d, want at least %d", seed, i, got, r.least)
			}
		}
	}
}

func TestNoAllocations(t *testing.T) {
	tr, _, now := link(Profiles[1])
	w, r := write(0, 1, 2, 3), read(0, 64)
	round := func() {
		_ = tr.Post(w, r)
		tr.Interrupt(0)
		for wait := tr.Poll(); wait > 0; wait = tr.Poll() {
			*now += wait
		}
	}
	h := tr.inner.(*host)
	h.log, h.at = make([]string, 0, 1<<16), make([]int64, 0, 1<<16)
	for range 100 {
		round()
	}
	if n := testing.AllocsPerRun(100, round); n != 0 {
		t.Errorf("%v allocations for a round, want none", n)
	}
}

func TestProfiles(t *testing.T) {
	if p, err := ByName("zero"); err != nil || !p.Zero() {
		t.Errorf("zero: %+v, %v", p, err)
	}
	for _, p := range Profiles[1:] {
		if p.Zero() || p.ReadLatency == 0 || p.WriteLatency == 0 || p.ReadBandwidth == 0 ||
			p.WriteBandwidth == 0 || p.Outstanding == 0 || p.DoorbellLatency == 0 || p.InterruptLatency == 0 {
			t.Errorf("%s lacks a parameter: %+v", p.Name, p)
		}
	}
	_, err := ByName("bluefield9")
	if err == nil || !bytes.Contains([]byte(err.Error()), []byte("bluefield3")) {
		t.Errorf("unknown profile: %v", err)
	}
}

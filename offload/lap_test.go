// SPDX-License-Identifier: Apache-2.0

package offload_test

import (
	"bytes"
	"errors"
	"math/rand"
	"testing"
	"unsafe"

	"pno/offload"
)

const roundTrip = offload.RecordHdr + 112 // a request's record, and its answer's

// largeLayout has rings that are worth not going round.
func largeLayout() offload.Layout {
	l := offload.DefaultLayout(1)
	l.Channels = 1
	return l
}

// counted is a transport that notes what it moves, without control lines.
type counted struct {
	offload.Transport
	read, written int
	slow          bool // operations wait for Poll
	waiting       []*offload.DMA
}

func (c *counted) Poll() int64 {
	if err := c.Transport.Post(c.waiting...); err != nil {
		panic(err) // DevQP does not post what it may not
	}
	c.waiting = c.waiting[:0]
	return 0
}

func (c *counted) Post(ops ...*offload.DMA) error {
	for _, op := range ops {
		switch {
		case op.Line:
		case op.Kind == offload.DMARead:
			c.read += len(op.Buf)
		default:
			c.written += len(op.Buf)
		}
	}
	if c.slow {
		c.waiting = append(c.waiting, ops...)
		return nil
	}
	return c.Transport.Post(ops...)
}

// toDPU sends n records of the size, and has the DPU consume them.
func (p *pair) toDPU(t *testing.T, n, size int) {
	t.Helper()
	for i := range n {
		b := p.host.Emit(offload.OpSend, 0, 1, uint32(i), 0, size)
		if b == nil {
			t.Fatalf("no room for record %d of %d", i, n)
		}
		copy(b, pattern(uint32(i), size))
	}
	p.host.Publish()
	if err := p.dev.Pump(); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		rec, b, ok, err := p.dev.Next()
		if err != nil || !ok || rec.Seq != uint32(i) || !bytes.Equal(b, pattern(uint32(i), size)) {
			t.Fatalf("record %d of %d arrived as %+v, %v, %v", i, n, rec, ok, err)
		}
	}
	if _, _, ok, err := p.dev.Next(); ok || err != nil || p.dev.Pending() {
		t.Fatalf("behind the last record: %v, %v", ok, err)
	}
	if err := p.dev.Flush(); err != nil {
		t.Fatal(err)
	}
}

// toHost is the other direction.
func (p *pair) toHost(t *testing.T, n, size int) {
	t.Helper()
	if err := p.dev.Pump(); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		if p.dev.Space() < min(size, offload.MaxPayload) {
			t.Fatalf("space %d for record %d of %d", p.dev.Space(), i, n)
		}
		copy(p.dev.Emit(offload.OpData, 0, 1, uint32(i), 0, size), pattern(uint32(i), size))
	}
	if err := p.dev.Flush(); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		rec, b, ok, err := p.host.Next()
		if err != nil || !ok || rec.Seq != uint32(i) || !bytes.Equal(b, pattern(uint32(i), size)) {
			t.Fatalf("record %d of %d arrived as %+v, %v, %v", i, n, rec, ok, err)
		}
	}
	p.host.Release()
}

// touched is the last byte of a ring that is not zero.
func touched(ring []byte) int { return len(bytes.TrimRight(ring, "\x00")) }

// TestLightUse goes many laps and finds most of both rings untouched; what is
// moved, and what statistics tell, are the records alone.
func TestLightUse(t *testing.T) {
	p := newPair(t, largeLayout())
	const rounds, burst = 4000, 3
	for range rounds {
		p.toDPU(t, burst, roundTrip-offload.RecordHdr)
		p.toHost(t, burst, roundTrip-offload.RecordHdr)
	}
	o := p.l.QP(0, 0)
	limit := offload.EarlyLap + offload.LapStep + burst*roundTrip
	for what, ring := range map[string][]byte{
		"host to DPU": p.mem[o.H2D : o.H2D+uint64(p.l.H2DSize)], "DPU to host": p.mem[o.D2H : o.D2H+uint64(p.l.D2HSize)],
	} {
		if n := touched(ring); n > limit || n < offload.EarlyLap {
			t.Errorf("%s: %d bytes of the ring touched, want %d to %d", what, n, offload.EarlyLap, limit)
		}
	}
	const total = rounds * burst * roundTrip
	if p.dma.read != total {
		t.Errorf("%d bytes of records fetched, the host wrote %d", p.dma.read, total)
	}
	laps := (total + offload.EarlyLap - 1) / offload.EarlyLap
	if n := p.dma.written; n < total || n > total+laps*offload.RecordHdr {
		t.Errorf("%d bytes written for %d of records in about %d laps", n, total, laps)
	}
	if err := p.dev.Pump(); err != nil {
		t.Fatal(err)
	}
	want := offload.DevQPStats{H2DConsumed: total, D2HProduced: total, H2DSize: 1 << 20, D2HSize: 1 << 20}
	if got := p.dev.Stats(); got != want {
		t.Errorf("statistics %+v, want %+v", got, want)
	}
}

// TestStatsWithoutPadding looks while records are under way, padding or not.
func TestStatsWithoutPadding(t *testing.T) {
	p := newPair(t, largeLayout())
	const each = 2 * roundTrip
	for done := uint64(0); done < 4*offload.EarlyLap; done += each {
		for range 2 {
			p.host.Emit(offload.OpSend, 0, 1, 0, 0, roundTrip-offload.RecordHdr)
			p.dev.Emit(offload.OpData, 0, 1, 0, 0, roundTrip-offload.RecordHdr)
		}
		p.host.Publish()
		if err := p.dev.Flush(); err != nil {
			t.Fatal(err)
		}
		if err := p.dev.Pump(); err != nil {
			t.Fatal(err)
		}
		want := offload.DevQPStats{
			H2DUsed: each, H2DConsumed: done, D2HUsed: each, D2HProduced: done + each, H2DSize: 1 << 20, D2HSize: 1 << 20,
		}
		if got := p.dev.Stats(); got != want {
			t.Fatalf("statistics %+v, want %+v", got, want)
		}
		p.exchange(t)
	}
}

// TestBurstsHaveTheRing sends more at once than an early end of a lap leaves
// room for: it is in the way a few times, and then not any more.
func TestBurstsHaveTheRing(t *testing.T) {
	const size = 4000
	for what, emit := range map[string]func(p *pair) bool{
		"host to DPU": func(p *pair) bool { return p.host.Emit(offload.OpSend, 0, 1, 0, 0, size) != nil },
		"DPU to host": func(p *pair) bool { return p.dev.Emit(offload.OpData, 0, 1, 0, 0, size) != nil },
	} {
		t.Run(what, func(t *testing.T) {
			p := newPair(t, largeLayout())
			rnd := rand.New(rand.NewSource(1))
			short := 0
			for range 200 {
				for range rnd.Intn(60) {
					emit(p)
					p.exchange(t)
				}
				for left := 200; left > 0; { // 784 KiB
					if emit(p) {
						left--
						continue
					}
					short++
					p.exchange(t)
				}
				p.exchange(t)
			}
			if short == 0 || short > 3 {
				t.Errorf("%d of 200 bursts found no room", short)
			}
		})
	}
}

// exchange moves whatever there is, both ways.
func (p *pair) exchange(t *testing.T) {
	t.Helper()
	p.host.Publish()
	for range 2 {
		if err := p.dev.Pump(); err != nil {
			t.Fatal(err)
		}
		for ok := true; ok; {
			var err error
			if _, _, ok, err = p.dev.Next(); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.dev.Flush(); err != nil {
			t.Fatal(err)
		}
		for ok := true; ok; {
			var err error
			if _, _, ok, err = p.host.Next(); err != nil {
				t.Fatal(err)
			}
		}
		p.host.Release()
	}
}

// TestPromisesHold ends laps early between a promise of room and its use.
func TestPromisesHold(t *testing.T) {
	p := newPair(t, largeLayout())
	const frame = offload.DgramSize + offload.MaxDgram
	for range 300 {
		if !p.dev.Fits(frame) {
			t.Fatal("no room in an empty ring")
		}
		for left := frame; left > 0; left -= offload.MaxPayload {
			if p.dev.Emit(offload.OpDgram, 0, 1, 0, 0, min(left, offload.MaxPayload)) == nil {
				t.Fatal("room for the frame, not for its records")
			}
		}
		if n := p.host.Room(8 << 10); n != offload.MaxPayload || p.host.Emit(offload.OpSend, 0, 1, 0, 0, n) == nil {
			t.Fatalf("room for %d bytes, but not for the record", n)
		}
		p.exchange(t)
	}
}

// TestDPUChecksPadding tells the DPU of padding that is none.
func TestDPUChecksPadding(t *testing.T) {
	size := uint64(offload.MinRingSize)
	rec := func(at int, op offload.Op, n uint16) func([]byte) {
		return func(ring []byte) { offload.PutRecord(ring[at:], offload.Record{Op: op, Len: n, Seq: uint32(at)}) }
	}
	for _, c := range []struct {
		name    string
		pad     uint64
		ring    []func([]byte)
		records int
		bad     bool
	}{
		{"all but a record", 16, []func([]byte){rec(0, offload.OpSend, 0)}, 1, false},
		{"from the last record on", size - 16, []func([]byte){rec(0, offload.OpSend, 100), rec(128, offload.OpPad, 0)}, 0, true},
		{"through a record", 32, []func([]byte){rec(0, offload.OpSend, 100)}, 0, true},
		{"not aligned: none", 8, []func([]byte){rec(0, offload.OpSend, 0), rec(16, offload.OpPad, 0)}, 1, false},
		{"beyond the ring: none", size, []func([]byte){rec(0, offload.OpSend, 0), rec(16, offload.OpPad, 0)}, 1, false},
		{"far away: none", 1<<64 - 16, []func([]byte){rec(0, offload.OpSend, 0), rec(16, offload.OpPad, 0)}, 1, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPair(t, smallLayout())
			o := p.l.QP(0, 0)
			for _, put := range c.ring {
				put(p.mem[o.H2D:])
			}
			*(*offload.HostLine)(unsafe.Pointer(&p.mem[o.HostLine])) = offload.HostLine{H2DProd: size, H2DPad: c.pad}
			if err := p.dev.Pump(); err != nil {
				t.Fatal(err)
			}
			n := 0
			_, _, ok, err := p.dev.Next()
			for ; ok; _, _, ok, err = p.dev.Next() {
				n++
			}
			if n != c.records && !c.bad || errors.Is(err, offload.ErrProtocol) != c.bad || err == nil && p.dev.Pending() {
				t.Errorf("%d records, %v", n, err)
			}
		})
	}
}

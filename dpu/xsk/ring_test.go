// SPDX-License-Identifier: Apache-2.0

package xsk

import (
	"errors"
	"runtime"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// layout places a ring's indices a cache line apart, as the kernel does.
var layout = unix.XDPRingOffset{Producer: 0, Consumer: 64, Flags: 128, Desc: 192}

// memory is ordinary, suitably aligned memory for a ring of n descriptors.
func memory(n int) []byte {
	words := make([]uint64, (192+16*n)/8)
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(words))), 8*len(words))
}

func mustRing[T uint64 | unix.XDPDesc](t testing.TB, mem []byte, entries uint32) ring[T] {
	t.Helper()
	r, err := newRing[T](mem, layout, entries)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// pair is a ring with both of its sides on one memory.
func pair(t testing.TB, entries, start uint32) (*producerRing[uint64], *consumerRing[uint64]) {
	mem := memory(int(entries))
	first := mustRing[uint64](t, mem, entries)
	first.producer.Store(start)
	first.consumer.Store(start)
	return &producerRing[uint64]{mustRing[uint64](t, mem, entries)},
		&consumerRing[uint64]{mustRing[uint64](t, mem, entries)}
}

func TestRingFillsAndDrains(t *testing.T) {
	for _, start := range []uint32{0, 5, 1<<32 - 3} { // the last one wraps on the way
		p, c := pair(t, 8, start)
		for round := range uint64(20) {
			if n, err := p.room(); n != 8 || err != nil {
				t.Fatalf("room = %d, %v", n, err)
			}
			for i := range uint64(8) {
				p.put(round*8 + i)
			}
			if n, err := c.available(); n != 0 || err != nil {
				t.Fatalf("available before publish = %d, %v", n, err)
			}
			p.publish()
			if n, err := p.room(); n != 0 || err != nil {
				t.Fatalf("room of a full ring = %d, %v", n, err)
			}
			if n, err := c.available(); n != 8 || err != nil {
				t.Fatalf("available = %d, %v", n, err)
			}
			for i := range uint64(8) {
				if v := c.take(); v != round*8+i {
					t.Fatalf("took %d, want %d", v, round*8+i)
				}
			}
			if n, _ := p.room(); n != 0 {
				t.Fatalf("room before release = %d", n)
			}
			c.release()
			if n, err := p.waiting(); n != 0 || err != nil {
				t.Fatalf("waiting = %d, %v", n, err)
			}
		}
	}
}

func TestRingRefusesImpossibleIndices(t *testing.T) {
	const start = 100
	for _, c := range []struct {
		name     string
		producer uint32
		bad      bool
	}{
		{"as it was", start + 4, false},
		{"full", start + 8, false},
		{"more than fits", start + 9, true},
		{"far ahead", start + 1<<31, true},
		{"before what was seen", start + 3, true},
		{"before the consumer", start - 1, true},
	} {
		t.Run("producer "+c.name, func(t *testing.T) {
			p, r := pair(t, 8, start)
			p.producer.Store(start + 4)
			if n, err := r.available(); n != 4 || err != nil {
				t.Fatalf("available = %d, %v", n, err)
			}
			p.producer.Store(c.producer)
			if n, err := r.available(); errors.Is(err, errRingIndex) != c.bad || c.bad && n != 0 {
				t.Fatalf("available = %d, %v", n, err)
			}
		})
	}
	for _, c := range []struct {
		name     string
		consumer uint32
		bad      bool
	}{
		{"as it was", start + 2, false},
		{"all taken", start + 6, false},
		{"past the producer", start + 7, true},
		{"before what was seen", start + 1, true},
		{"far ahead", start + 1<<31, true},
	} {
		t.Run("consumer "+c.name, func(t *testing.T) {
			p, r := pair(t, 8, start)
			for i := range uint64(6) {
				p.put(i)
			}
			p.publish()
			r.consumer.Store(start + 2)
			if n, err := p.waiting(); n != 4 || err != nil {
				t.Fatalf("waiting = %d, %v", n, err)
			}
			r.consumer.Store(c.consumer)
			if n, err := p.room(); errors.Is(err, errRingIndex) != c.bad || c.bad && n != 0 {
				t.Fatalf("room = %d, %v", n, err)
			}
		})
	}
}

// TestRingOrdering passes values between two threads: a slot read before it is
// written, or overwritten before it is read, shows as a wrong value. Its worth
// is on arm64 and under the race detector.
func TestRingOrdering(t *testing.T) {
	const total = 200_000
	p, c := pair(t, 64, 1<<32-1000)
	go func() {
		for v := uint64(0); v < total; {
			n, _ := p.room()
			if n == 0 {
				runtime.Gosched()
			}
			for ; n > 0 && v < total; n-- {
				p.put(v)
				v++
			}
			p.publish()
		}
	}()
	for want := uint64(0); want < total; {
		n, err := c.available()
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			runtime.Gosched()
		}
		for ; n > 0; n-- {
			if v := c.take(); v != want {
				t.Fatalf("took %d, want %d", v, want)
			}
			want++
		}
		c.release()
	}
}

func TestNewRingChecksLayout(t *testing.T) {
	for _, c := range []struct {
		name    string
		off     unix.XDPRingOffset
		entries uint32
		ok      bool
	}{
		{"as it should be", layout, 8, true},
		{"no entries", layout, 0, false},
		{"not a power of two", layout, 6, false},
		{"more entries than memory", layout, 16, false},
		{"entries overflow", layout, 1 << 31, false},
		{"index beyond the end", unix.XDPRingOffset{Producer: 1 << 20, Consumer: 64, Flags: 128, Desc: 192}, 8, false},
		{"index near 2^64", unix.XDPRingOffset{Producer: 0, Consumer: ^uint64(3), Flags: 128, Desc: 192}, 8, false},
		{"index not aligned", unix.XDPRingOffset{Producer: 0, Consumer: 65, Flags: 128, Desc: 192}, 8, false},
		{"entries beyond the end", unix.XDPRingOffset{Producer: 0, Consumer: 64, Flags: 128, Desc: 1 << 20}, 8, false},
		{"entries not aligned", unix.XDPRingOffset{Producer: 0, Consumer: 64, Flags: 128, Desc: 196}, 4, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := newRing[unix.XDPDesc](memory(8), c.off, c.entries); (err == nil) != c.ok {
				t.Fatalf("newRing: %v", err)
			}
		})
	}
}

func FuzzNewRing(f *testing.F) {
	f.Add(uint64(0), uint64(64), uint64(128), uint64(192), uint32(8))
	f.Fuzz(func(t *testing.T, producer, consumer, flags, desc uint64, entries uint32) {
		off := unix.XDPRingOffset{Producer: producer, Consumer: consumer, Flags: flags, Desc: desc}
		mem := memory(8)
		r, err := newRing[uint64](mem, off, entries)
		if err != nil {
			return
		}
		_ = r.needWakeup()
		p := producerRing[uint64]{r}
		if n, err := p.room(); err == nil {
			for ; n > 0; n-- {
				p.put(0)
			}
		}
	})
}

// SPDX-License-Identifier: Apache-2.0

package shard

import (
	"context"
	"encoding/binary"
	"runtime"
	"testing"
	"time"
)

// Frames come out of a hand-over as they went in, once they are published and
// not before, and what is not taken fills it.
func TestHandover(t *testing.T) {
	h := newHandover(64)
	frame := func(i int) []byte {
		f := make([]byte, 4+i%60)
		binary.BigEndian.PutUint32(f, uint32(i))
		return f
	}
	in, out := 0, 0
	put := func(n int) (done int) {
		for ; done < n && h.put(frame(in)); done++ {
			in++
		}
		return done
	}
	take := func(n int) {
		t.Helper()
		var some [64][]byte
		for n > 0 {
			got := h.list(some[:min(n, len(some))])
			if got == 0 || &some[0][0] != &h.peek()[0] {
				t.Fatalf("%d frames listed, %d wanted; the first is not the oldest", got, n)
			}
			for _, f := range some[:got] {
				if len(f) != 4+out%60 || binary.BigEndian.Uint32(f) != uint32(out) {
					t.Fatalf("%x instead of frame %d", f, out)
				}
				out++
			}
			h.pop(got)
			n -= got
		}
	}
	if h.put(make([]byte, 65)) || h.publish() {
		t.Error("a frame that is too long was taken")
	}
	for range 5 { // beyond the end of its slots
		if put(handSlots+1) != handSlots || h.peek() != nil || !h.empty() {
			t.Fatalf("%d frames were taken, of which somebody saw some before they were published", in-out)
		}
		if !h.publish() || h.publish() || h.empty() {
			t.Fatal("published nothing, or twice")
		}
		take(700)
		if put(800) != 700 {
			t.Fatal("room for more, or less, than was taken")
		}
		h.publish()
		take(handSlots)
		if h.peek() != nil || !h.empty() {
			t.Fatal("more frames than were put")
		}
	}
}

// Producer and consumer run at once.
func TestHandoverBetweenShards(t *testing.T) {
	h, frames := newHandover(8), uint64(50_000)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	go func() {
		var f [8]byte
		for i := uint64(0); i < frames && ctx.Err() == nil; {
			binary.BigEndian.PutUint64(f[:], i)
			if h.put(f[:]) {
				i++
			} else {
				runtime.Gosched()
			}
			if i%7 == 0 || i == frames {
				h.publish()
			}
		}
	}()
	for i := uint64(0); i < frames; {
		f := h.peek()
		if f == nil {
			if ctx.Err() != nil {
				t.Fatalf("%d frames of %d came", i, frames)
			}
			runtime.Gosched()
			continue
		}
		if got := binary.BigEndian.Uint64(f); got != i {
			t.Fatalf("frame %d instead of %d", got, i)
		}
		h.pop(1)
		i++
	}
}

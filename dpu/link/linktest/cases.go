// SPDX-License-Identifier: Apache-2.0

package linktest

import (
	"errors"
	"testing"
	"time"

	"pno/dpu/link"
)

func testIdentity(t *testing.T, a, b *port) {
	for _, p := range []*port{a, b} {
		if p.dev.Name() == "" {
			t.Error("device has no name")
		}
		if mac := p.dev.MAC(); mac == [6]byte{} || mac[0]&1 != 0 {
			t.Errorf("%s: % x is not a unicast address", p.dev.Name(), mac)
		}
		if mtu := p.dev.MTU(); mtu < 576 {
			t.Errorf("%s: MTU %d", p.dev.Name(), mtu)
		}
		for i, q := range p.dev.Queues() {
			if q.FD() < 0 {
				t.Errorf("%s: queue %d has no fd", p.dev.Name(), i)
			}
			if q.TxPending() {
				t.Errorf("%s: queue %d is pending before use", p.dev.Name(), i)
			}
			if n, err := q.Recv(nil); n != 0 || err != nil {
				t.Errorf("%s: Recv(nil) = %d, %v", p.dev.Name(), n, err)
			}
		}
	}
	if a.dev.MAC() == b.dev.MAC() {
		t.Error("both ends have one hardware address")
	}
}

func testRoundTrip(t *testing.T, a, b *port) {
	for seq := range uint32(200) {
		for _, way := range []struct{ from, to *port }{{a, b}, {b, a}} {
			way.from.send(way.to, seq, 128)
			way.to.expect(1, func(_ int, got uint32, size int) {
				if got != seq || size != 128 {
					t.Fatalf("received frame %d of %d bytes, want %d of 128", got, size, seq)
				}
			})
		}
	}
}

func testSizes(t *testing.T, a, b *port) {
	full := min(a.dev.MTU(), b.dev.MTU()) + headerLen
	for i, size := range []int{minSize, 61, 64, 65, 127, 513, 1024, full - 1, full} {
		a.send(b, uint32(i), size)
		b.expect(1, func(_ int, seq uint32, got int) {
			if seq != uint32(i) || got != size {
				t.Fatalf("received frame %d of %d bytes, want %d of %d", seq, got, i, size)
			}
		})
	}
}

func testBatch(t *testing.T, a, b *port) {
	const batch, rounds = 64, 50
	flushes := uint64(0)
	seq := uint32(0)
	for range rounds {
		for range batch {
			if !a.commit(b, seq, 256) {
				t.Fatalf("no room for frame %d of a batch of %d", seq%batch, batch)
			}
			seq++
		}
		for a.flush(); ; a.flush() {
			flushes++
			if !a.tx.TxPending() {
				break
			}
		}
		b.expect(batch, func(i int, got uint32, _ int) {
			if want := seq - batch + uint32(i); got != want {
				t.Fatalf("received frame %d, want %d", got, want)
			}
		})
	}
	if kicks := a.dev.Stats().Kicks; kicks > flushes {
		t.Errorf("%d kicks for %d flushes, want at most one each", kicks, flushes)
	}
}

// testHoldUntilRelease looks at frames again after more have been received.
func testHoldUntilRelease(t *testing.T, a, b *port) {
	const rounds = 8
	type held struct {
		frame []byte
		seq   uint32
	}
	var all []held
	for seq := range uint32(rounds) {
		a.send(b, seq, 200+int(seq))
		for end := time.Now().Add(patience); len(all) <= int(seq); {
			for _, q := range b.dev.Queues() {
				n, err := q.Recv(b.frames)
				if err != nil {
					t.Fatal(err)
				}
				for _, f := range b.frames[:n] {
					if got, ours, err := decode(f, b.dev.MAC()); err != nil {
						t.Fatal(err)
					} else if ours {
						all = append(all, held{f, got})
					}
				}
			}
			if time.Now().After(end) {
				t.Fatalf("frame %d did not come", seq)
			}
		}
	}
	for i, h := range all {
		seq, _, err := decode(h.frame, b.dev.MAC())
		if err != nil || seq != h.seq || seq != uint32(i) {
			t.Fatalf("frame %d reads as %d before Release (%v)", i, seq, err)
		}
	}
	for _, q := range b.dev.Queues() {
		q.Release()
		q.Release() // with nothing held it has nothing to do
	}
	a.send(b, 1000, minSize)
	b.expect(1, func(_ int, seq uint32, _ int) {
		if seq != 1000 {
			t.Fatalf("received frame %d after Release", seq)
		}
	})
}

// testHoldEverything never releases until the receiver runs out of frames,
// which must cost packets and nothing else.
func testHoldEverything(t *testing.T, a, b *port) {
	const limit = 1 << 14
	received := 0
	last := int64(-1)
	for sent, idle := uint32(0), 0; idle < 50 && sent < limit; {
		for range 32 {
			a.send(b, sent, minSize)
			sent++
		}
		got := 0
		for _, q := range b.dev.Queues() {
			n, err := q.Recv(b.frames)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range b.frames[:n] {
				seq, ours, err := decode(f, b.dev.MAC())
				if err != nil {
					t.Fatal(err)
				}
				if !ours {
					continue
				}
				if int64(seq) <= last {
					t.Fatalf("frame %d came after %d without Release", seq, last)
				}
				last = int64(seq)
				got++
			}
		}
		if received += got; got == 0 {
			idle++
		} else {
			idle = 0
		}
	}
	if received == 0 {
		t.Fatal("nothing received")
	}
	for _, q := range b.dev.Queues() {
		q.Release()
	}
	b.quiet(ignore)
	a.send(b, limit+1, minSize)
	b.expect(1, func(_ int, seq uint32, _ int) {
		if seq != limit+1 {
			t.Fatalf("received frame %d after recovery", seq)
		}
	})
}

// testTxFull fills the transmit queue without a flush: TxAlloc says so, the
// committed frames go out in order, and the queue works as before.
func testTxFull(t *testing.T, a, b *port) {
	const limit = 1 << 17
	for round := range 3 {
		sent := uint32(0)
		for a.commit(b, sent, 100) {
			if sent++; sent == limit {
				t.Fatalf("TxAlloc accepted %d frames without a Flush", limit)
			}
		}
		if sent < 64 {
			t.Fatalf("round %d: transmit queue holds %d frames, want at least 64", round, sent)
		}
		if a.tx.TxAlloc() != nil {
			t.Fatal("TxAlloc changed its mind on a full queue")
		}
		// A burst may be longer than what the receiver holds: frames may be
		// lost, but not reordered, repeated or damaged.
		last, received := int64(-1), 0
		inOrder := func(seq uint32, _ int) {
			if int64(seq) <= last {
				t.Fatalf("frame %d came after %d", seq, last)
			}
			last = int64(seq)
			received++
		}
		for end := time.Now().Add(patience); a.tx.TxPending(); {
			a.flush()
			b.poll(inOrder)
			if time.Now().After(end) {
				t.Fatalf("round %d: transmit queue does not drain", round)
			}
		}
		b.quiet(inOrder)
		if received == 0 {
			t.Fatalf("round %d: none of %d frames arrived", round, sent)
		}
		a.send(b, limit+1, minSize)
		b.expect(1, func(_ int, seq uint32, _ int) {
			if seq != limit+1 {
				t.Fatalf("round %d: received frame %d after recovery", round, seq)
			}
		})
	}
}

// testBadCommit commits lengths no frame can have: they are dropped and
// counted, and the queue loses no room over it.
func testBadCommit(t *testing.T, a, b *port) {
	before := a.dev.Stats().TxDropped
	const times = 1 << 13
	for i := range times {
		buf := a.tx.TxAlloc()
		if buf == nil {
			t.Fatalf("no room after %d bad commits", i)
		}
		a.tx.TxCommit([]int{0, -1, len(buf) + 1}[i%3])
		if i%16 == 0 {
			a.flush()
		}
	}
	a.drain()
	if got := a.dev.Stats().TxDropped - before; got != times {
		t.Errorf("TxDropped rose by %d, want %d", got, times)
	}
	a.send(b, 1, minSize)
	b.expect(1, func(int, uint32, int) {})
}

func testReadiness(t *testing.T, a, b *port) {
	for seq := range uint32(5) {
		b.quiet(ignore)
		if b.wait(0) && b.poll(ignore) == 0 { // others may send at any time
			t.Fatal("readable with nothing to receive")
		}
		a.send(b, seq, minSize)
		a.send(b, seq, minSize)
		for range 3 { // level-triggered: it stays readable
			if !b.wait(patience) {
				t.Fatal("not readable with a frame waiting")
			}
		}
		b.expect(2, func(int, uint32, int) {})
	}
}

func testStats(t *testing.T, a, b *port) {
	a0, b0 := a.dev.Stats(), b.dev.Stats()
	const frames, size = 100, 300
	for seq := range uint32(frames) {
		a.send(b, seq, size)
		b.expect(1, func(int, uint32, int) {})
	}
	a1, b1 := a.dev.Stats(), b.dev.Stats()
	if got := a1.TxPackets - a0.TxPackets; got != frames {
		t.Errorf("TxPackets rose by %d, want %d", got, frames)
	}
	if got := a1.TxBytes - a0.TxBytes; got != frames*size {
		t.Errorf("TxBytes rose by %d, want %d", got, frames*size)
	}
	// Others may have put frames of their own on the receiving side.
	if got := b1.RxPackets - b0.RxPackets; got < frames {
		t.Errorf("RxPackets rose by %d, want at least %d", got, frames)
	}
	if got := b1.RxBytes - b0.RxBytes; got < frames*size {
		t.Errorf("RxBytes rose by %d, want at least %d", got, frames*size)
	}
	if b1.RxDropped != b0.RxDropped || a1.TxDropped != a0.TxDropped {
		t.Errorf("drops on an idle wire: sent %+v, received %+v", a1, b1)
	}
}

// testNoAllocations measures the steady state of both directions.
func testNoAllocations(t *testing.T, a, b *port) {
	template := make([]byte, 256)
	encode(template, a.dev.MAC(), b.dev.MAC(), 7)
	queues := b.dev.Queues()
	round := func() {
		sent, got := 0, 0
		for range 16 {
			if buf := a.tx.TxAlloc(); buf != nil {
				copy(buf, template)
				a.tx.TxCommit(len(template))
				sent++
			}
		}
		for tries := 0; got < sent && tries < 1<<16; tries++ {
			if err := a.tx.Flush(); err != nil {
				t.Fatal(err)
			}
			for _, q := range queues {
				n, err := q.Recv(b.frames)
				if err != nil {
					t.Fatal(err)
				}
				got += n
				q.Release()
			}
		}
	}
	for range 200 {
		round()
	}
	if n := testing.AllocsPerRun(200, round); n != 0 {
		t.Errorf("%v allocations for 16 frames sent and received, want none", n)
	}
}

func testClose(t *testing.T, a, b *port) {
	a.send(b, 1, minSize)
	b.expect(1, func(int, uint32, int) {})
	before := a.dev.Stats()
	if err := a.dev.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
	if n, err := a.tx.Recv(a.frames); n != 0 || !errors.Is(err, link.ErrClosed) {
		t.Errorf("Recv after Close = %d, %v", n, err)
	}
	if a.tx.TxAlloc() != nil {
		t.Error("TxAlloc after Close returned a frame")
	}
	if err := a.tx.Flush(); !errors.Is(err, link.ErrClosed) {
		t.Errorf("Flush after Close = %v", err)
	}
	if a.tx.TxPending() {
		t.Error("pending after Close")
	}
	a.tx.Release()
	if after := a.dev.Stats(); after.TxPackets != before.TxPackets {
		t.Errorf("Stats after Close: %d packets sent, %d before", after.TxPackets, before.TxPackets)
	}
	if err := a.dev.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

// testPeerClosed sends to nobody: frames are lost and the sender lives on.
func testPeerClosed(t *testing.T, a, b *port) {
	if err := b.dev.Close(); err != nil {
		t.Fatal(err)
	}
	for seq := range uint32(256) {
		if a.commit(b, seq, minSize) && seq%16 == 0 {
			a.flush()
		}
	}
	a.poll(ignore)
	if err := a.dev.Close(); err != nil {
		t.Fatal(err)
	}
}

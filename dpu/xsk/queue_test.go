// SPDX-License-Identifier: Apache-2.0

package xsk

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	testFrame  = 2048
	testFrames = 8 // in each direction
)

// kernel is the other side of a queue whose rings are ordinary memory.
type kernel struct {
	fill       consumerRing[uint64]
	completion producerRing[uint64]
	rx         producerRing[unix.XDPDesc]
	tx         consumerRing[unix.XDPDesc]
}

// newFake makes a queue with no socket behind it. Its descriptor is invalid:
// a kick fails, and none is due unless the test asks for wake-ups.
func newFake(t testing.TB) (*queue, *kernel) {
	fill, completion, rx, tx := memory(testFrames), memory(testFrames), memory(testFrames), memory(testFrames)
	s := &socket{
		fd:         -1,
		umem:       umemOver(make([]byte, 2*testFrames*testFrame), testFrame, testFrames, testFrames),
		fill:       producerRing[uint64]{mustRing[uint64](t, fill, testFrames)},
		completion: consumerRing[uint64]{mustRing[uint64](t, completion, testFrames)},
		rx:         consumerRing[unix.XDPDesc]{mustRing[unix.XDPDesc](t, rx, testFrames)},
		tx:         producerRing[unix.XDPDesc]{mustRing[unix.XDPDesc](t, tx, testFrames)},
	}
	return newQueue(s, "fake queue 0", 1500), &kernel{
		fill:       consumerRing[uint64]{mustRing[uint64](t, fill, testFrames)},
		completion: producerRing[uint64]{mustRing[uint64](t, completion, testFrames)},
		rx:         producerRing[unix.XDPDesc]{mustRing[unix.XDPDesc](t, rx, testFrames)},
		tx:         consumerRing[unix.XDPDesc]{mustRing[unix.XDPDesc](t, tx, testFrames)},
	}
}

// deliver puts a descriptor on the receive ring.
func (k *kernel) deliver(d unix.XDPDesc) {
	k.rx.put(d)
	k.rx.publish()
}

// nextFill takes an address from the fill ring.
func (k *kernel) nextFill(t testing.TB) uint64 {
	t.Helper()
	if n, err := k.fill.available(); n == 0 || err != nil {
		t.Fatalf("fill ring has %d entries (%v)", n, err)
	}
	addr := k.fill.take()
	k.fill.release()
	return addr
}

func TestQueueReceivesAndRefills(t *testing.T) {
	q, k := newFake(t)
	frames := make([][]byte, 3)
	for round := range 50 {
		for range 2 {
			addr := k.nextFill(t) + 256 // the kernel leaves headroom
			copy(q.sock.umem.mem[addr:], "fourteen bytes and more")
			k.deliver(unix.XDPDesc{Addr: addr, Len: 23})
		}
		n, err := q.Recv(frames)
		if n != 2 || err != nil {
			t.Fatalf("round %d: Recv = %d, %v", round, n, err)
		}
		for _, f := range frames[:n] {
			if string(f) != "fourteen bytes and more" {
				t.Fatalf("received %q", f)
			}
		}
		q.Release()
		if n, _ := k.fill.available(); n != testFrames {
			t.Fatalf("round %d: %d frames in the fill ring, want %d", round, n, testFrames)
		}
	}
}

func TestQueueRefusesBadDescriptors(t *testing.T) {
	for _, c := range []struct {
		name string
		desc func(addr uint64) unix.XDPDesc
	}{
		{"beyond the memory", func(uint64) unix.XDPDesc { return unix.XDPDesc{Addr: 1 << 40, Len: 64} }},
		{"near 2^64", func(uint64) unix.XDPDesc { return unix.XDPDesc{Addr: ^uint64(0) - 8, Len: 64} }},
		{"a transmit frame", func(uint64) unix.XDPDesc { return unix.XDPDesc{Addr: testFrames * testFrame, Len: 64} }},
		{"over the end of its frame", func(a uint64) unix.XDPDesc { return unix.XDPDesc{Addr: a + 2000, Len: 64} }},
		{"length of 4 GiB", func(a uint64) unix.XDPDesc { return unix.XDPDesc{Addr: a, Len: 1<<32 - 1} }},
		{"shorter than a header", func(a uint64) unix.XDPDesc { return unix.XDPDesc{Addr: a, Len: 13} }},
		{"one part of several", func(a uint64) unix.XDPDesc {
			return unix.XDPDesc{Addr: a, Len: 64, Options: unix.XDP_PKT_CONTD}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			q, k := newFake(t)
			k.deliver(c.desc(k.nextFill(t)))
			good := k.nextFill(t)
			k.deliver(unix.XDPDesc{Addr: good, Len: 60})
			frames := make([][]byte, 4)
			if n, err := q.Recv(frames); n != 1 || err != nil || len(frames[0]) != 60 {
				t.Fatalf("Recv = %d, %v", n, err)
			}
			if bad := q.count.rxBad.Load(); bad != 1 {
				t.Fatalf("%d bad frames counted", bad)
			}
		})
	}
	t.Run("nothing but bad frames", func(t *testing.T) {
		q, k := newFake(t)
		k.deliver(unix.XDPDesc{Addr: k.nextFill(t), Len: 1})
		if n, err := q.Recv(make([][]byte, 4)); n != 0 || err != nil {
			t.Fatalf("Recv = %d, %v", n, err)
		}
		if n, _ := k.fill.available(); n != testFrames {
			t.Fatalf("%d frames in the fill ring, want %d", n, testFrames)
		}
	})
	t.Run("one frame twice", func(t *testing.T) {
		q, k := newFake(t)
		addr := k.nextFill(t)
		k.deliver(unix.XDPDesc{Addr: addr, Len: 60})
		k.deliver(unix.XDPDesc{Addr: addr, Len: 60})
		if n, err := q.Recv(make([][]byte, 4)); n != 1 || err != nil {
			t.Fatalf("Recv = %d, %v", n, err)
		}
	})
}

func TestQueueSendsAndReclaims(t *testing.T) {
	q, k := newFake(t)
	for round := range 50 {
		for i := range testFrames {
			buf := q.TxAlloc()
			if len(buf) != 1514 {
				t.Fatalf("round %d: frame %d has room for %d bytes", round, i, len(buf))
			}
			buf[0] = byte(i)
			q.TxCommit(64 + i)
		}
		if q.TxAlloc() != nil {
			t.Fatal("room in a full queue")
		}
		if !q.TxPending() {
			t.Fatal("not pending before Flush")
		}
		if n, _ := k.tx.available(); n != 0 {
			t.Fatalf("%d frames published before Flush", n)
		}
		if err := q.Flush(); err != nil {
			t.Fatal(err)
		}
		if q.TxPending() {
			t.Fatal("pending though the driver needs no wake-up")
		}
		n, _ := k.tx.available()
		if n != testFrames {
			t.Fatalf("%d frames published", n)
		}
		sent := make([]unix.XDPDesc, n)
		for i := range sent {
			sent[i] = k.tx.take()
			if q.sock.umem.mem[sent[i].Addr] != byte(i) || sent[i].Len != uint32(64+i) {
				t.Fatalf("frame %d is %+v", i, sent[i])
			}
		}
		k.tx.release()
		if q.TxAlloc() != nil {
			t.Fatal("room before completion")
		}
		for i := range sent { // drivers may complete in any order
			k.completion.put(sent[(i*3+round)%len(sent)].Addr)
		}
		k.completion.publish()
		if err := q.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	if kicks := q.count.kicks.Load(); kicks != 0 {
		t.Fatalf("%d kicks of a driver that needs none", kicks)
	}
}

func TestQueueRefusesBadCompletions(t *testing.T) {
	q, k := newFake(t)
	for range testFrames {
		q.TxAlloc()
		q.TxCommit(64)
	}
	if err := q.Flush(); err != nil {
		t.Fatal(err)
	}
	k.tx.available()
	addr := k.tx.take().Addr
	for _, bad := range []uint64{0, addr + 1, 1 << 40, ^uint64(0), 2 * testFrames * testFrame} {
		k.completion.put(bad)
	}
	k.completion.put(addr)
	k.completion.put(addr) // twice
	k.completion.publish()
	if err := q.Flush(); err != nil {
		t.Fatal(err)
	}
	if len(q.free) != 1 || q.count.txBad.Load() != 6 {
		t.Fatalf("%d frames free, %d bad completions", len(q.free), q.count.txBad.Load())
	}
}

func TestQueueEndsOnBadIndex(t *testing.T) {
	for _, c := range []struct {
		name    string
		corrupt func(*kernel)
		see     func(*queue) error
	}{
		{"receive", func(k *kernel) { k.rx.producer.Store(99) }, func(q *queue) error { _, err := q.Recv(make([][]byte, 1)); return err }},
		{"transmit", func(k *kernel) { k.tx.consumer.Store(99) }, (*queue).Flush},
		{"completion", func(k *kernel) { k.completion.producer.Store(99) }, (*queue).Flush},
	} {
		t.Run(c.name, func(t *testing.T) {
			q, k := newFake(t)
			c.corrupt(k)
			if err := c.see(q); !errors.Is(err, errRingIndex) {
				t.Fatalf("error is %v", err)
			}
			if q.TxAlloc() != nil || q.TxPending() {
				t.Error("a failed queue still sends")
			}
			if _, err := q.Recv(make([][]byte, 1)); !errors.Is(err, errRingIndex) {
				t.Errorf("Recv afterwards: %v", err)
			}
			q.Release()
		})
	}
}

func TestQueueKicksOnlyWhenAsked(t *testing.T) {
	q, k := newFake(t)
	k.tx.flags.Store(unix.XDP_RING_NEED_WAKEUP)
	if err := q.Flush(); err != nil || q.count.kicks.Load() != 0 {
		t.Fatalf("Flush of nothing: %v, %d kicks", err, q.count.kicks.Load())
	}
	for range 5 {
		q.TxAlloc()
		q.TxCommit(64)
	}
	// The descriptor is invalid, which the error must say without a panic.
	if err := q.Flush(); !errors.Is(err, unix.EBADF) || q.count.kicks.Load() != 1 {
		t.Fatalf("Flush: %v, %d kicks", err, q.count.kicks.Load())
	}
	if !q.TxPending() {
		t.Fatal("not pending though the kernel took nothing")
	}
}

func FuzzUmem(f *testing.F) {
	f.Add(uint64(0), uint32(60), true)
	f.Add(uint64(testFrames*testFrame), uint32(60), false)
	f.Fuzz(func(t *testing.T, addr uint64, length uint32, given bool) {
		u := umemOver(make([]byte, 2*testFrames*testFrame), testFrame, testFrames, testFrames)
		for i := range u.withKernel {
			u.withKernel[i] = given
		}
		frame, data, err := u.received(unix.XDPDesc{Addr: addr, Len: length})
		if err == nil && (!given || frame >= testFrames || len(data) != int(length) || u.withKernel[frame]) {
			t.Fatalf("received frame %d, %d bytes", frame, len(data))
		}
		frame, err = u.completed(addr)
		if err == nil && (!given || frame < testFrames || u.give(frame) != addr) {
			t.Fatalf("completed frame %d", frame)
		}
	})
}

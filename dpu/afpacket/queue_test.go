// SPDX-License-Identifier: Apache-2.0

package afpacket

import (
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// alignedSlot is ordinary memory with the alignment of a mapping.
func alignedSlot(n int) []byte {
	words := make([]uint64, n/8)
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(words))), n)
}

const fakeFrames = 8

// newFake makes a queue with no socket: the test plays the kernel on the slots.
func newFake() *queue {
	return &queue{
		fd: -1, name: "fake queue 0", room: 1514,
		rx: newSlots(alignedSlot(fakeFrames*2048), 2048),
		tx: newSlots(alignedSlot(fakeFrames*2048), 2048),
	}
}

func deliver(q *queue, i uint32, first byte) {
	slot := q.rx.slot(i)
	h := header(slot)
	h.Len, h.Snaplen, h.Mac = 60, 60, 66
	slot[66] = first
	status(h).Store(unix.TP_STATUS_USER)
}

func TestQueueGoesRound(t *testing.T) {
	q := newFake()
	q.rxNext = 1<<32 - 4 // wraps on the way; the length of the ring divides 2^32
	frames := make([][]byte, 3)
	for next := q.rxNext; next != 100; next += 2 {
		deliver(q, next, byte(next))
		deliver(q, next+1, byte(next+1))
		n, err := q.Recv(frames)
		if n != 2 || err != nil || frames[0][0] != byte(next) || frames[1][0] != byte(next+1) {
			t.Fatalf("Recv = %d, %v", n, err)
		}
		q.Release()
		for i := next; i != next+2; i++ {
			if s := status(header(q.rx.slot(i))).Load(); s != unix.TP_STATUS_KERNEL {
				t.Fatalf("slot %d has status %#x after Release", i, s)
			}
		}
	}
}

func TestQueueDoesNotReceiveHeldFramesAgain(t *testing.T) {
	q := newFake()
	for i := range uint32(fakeFrames) {
		deliver(q, i, byte(i))
	}
	frames := make([][]byte, 2*fakeFrames)
	if n, _ := q.Recv(frames); n != fakeFrames {
		t.Fatalf("Recv = %d", n)
	}
	if n, err := q.Recv(frames); n != 0 || err != nil {
		t.Fatalf("Recv of held frames = %d, %v", n, err)
	}
}

func TestQueueDropsBadSlots(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*unix.Tpacket2Hdr)
	}{
		{"truncated", func(h *unix.Tpacket2Hdr) { h.Len = 61 }},
		{"longer than the MTU", func(h *unix.Tpacket2Hdr) { h.Len, h.Snaplen = 1515, 1515 }},
		{"shorter than a header", func(h *unix.Tpacket2Hdr) { h.Len, h.Snaplen = 13, 13 }},
		{"over the end of the slot", func(h *unix.Tpacket2Hdr) { h.Mac = 2000 }},
		{"inside the slot's header", func(h *unix.Tpacket2Hdr) { h.Mac = 8 }},
		{"VLAN-tagged", func(h *unix.Tpacket2Hdr) { h.Status |= unix.TP_STATUS_VLAN_VALID }},
		{"checksum that nobody can finish", func(h *unix.Tpacket2Hdr) { h.Status |= unix.TP_STATUS_CSUMNOTREADY }},
	} {
		t.Run(c.name, func(t *testing.T) {
			q := newFake()
			deliver(q, 0, 1)
			c.change(header(q.rx.slot(0)))
			if n, err := q.Recv(make([][]byte, 1)); n != 0 || err != nil {
				t.Fatalf("Recv = %d, %v", n, err)
			}
			if bad := q.count.rxBad.Load(); bad != 1 {
				t.Fatalf("%d bad frames counted", bad)
			}
			if s := status(header(q.rx.slot(0))).Load(); s != unix.TP_STATUS_KERNEL {
				t.Fatalf("status %#x: the slot is lost", s)
			}
			deliver(q, 1, 2)
			if n, _ := q.Recv(make([][]byte, 1)); n != 1 {
				t.Fatal("the next frame is not received")
			}
		})
	}
}

func TestQueueSendsInOrder(t *testing.T) {
	q := newFake()
	for round := range 5 {
		for i := range fakeFrames {
			buf := q.TxAlloc()
			if len(buf) != 1514 {
				t.Fatalf("round %d: frame %d has room for %d bytes", round, i, len(buf))
			}
			q.TxCommit(60 + i)
		}
		if q.TxAlloc() != nil || !q.TxPending() {
			t.Fatal("a full queue has room, or is not pending")
		}
		for i := range uint32(fakeFrames) {
			h := header(q.tx.slot(i))
			if h.Len != 60+i || status(h).Load() != unix.TP_STATUS_SEND_REQUEST {
				t.Fatalf("slot %d: %+v", i, h)
			}
			status(h).Store(unix.TP_STATUS_SENDING)
			if got, want := q.TxPending(), i < fakeFrames-1; got != want {
				t.Fatalf("pending after slot %d: %v", i, got)
			}
		}
		if q.TxAlloc() != nil {
			t.Fatal("room in a queue whose frames are being sent")
		}
		for i := range uint32(fakeFrames) {
			status(header(q.tx.slot(i))).Store(unix.TP_STATUS_AVAILABLE)
		}
	}
}

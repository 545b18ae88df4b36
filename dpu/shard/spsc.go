// SPDX-License-Identifier: Apache-2.0

package shard

import "sync/atomic"

// handSlots is the length of a hand-over queue, a power of two. Slots get
// their buffers at first use.
const handSlots = 2048

// handover carries frames from one shard to one other: single producer,
// single consumer, no lock. It is also a netstack.Transmitter, for a shard
// that has no transmit queue of its own.
type handover struct {
	slots [handSlots][]byte
	size  int // of a frame at most

	_    [64]byte
	tail atomic.Uint32 // written by the producer
	_    [60]byte
	head atomic.Uint32 // written by the consumer
	_    [60]byte

	next uint32 // producer: tail, with what is not published yet
}

func newHandover(frame int) *handover { return &handover{size: frame} }

// TxAlloc implements netstack.Transmitter.
func (h *handover) TxAlloc() []byte {
	if h.next-h.head.Load() >= handSlots {
		return nil
	}
	b := &h.slots[h.next%handSlots]
	if cap(*b) < h.size {
		*b = make([]byte, h.size)
	}
	return (*b)[:h.size]
}

// TxCommit implements netstack.Transmitter.
func (h *handover) TxCommit(n int) {
	b := &h.slots[h.next%handSlots]
	*b = (*b)[:n]
	h.next++
}

// put adds a copy of a frame; false if the queue is full.
func (h *handover) put(f []byte) bool {
	if len(f) > h.size {
		return false
	}
	b := h.TxAlloc()
	if b == nil {
		return false
	}
	h.TxCommit(copy(b, f))
	return true
}

// publish makes what was added visible and reports whether there was any.
func (h *handover) publish() bool {
	if h.tail.Load() == h.next {
		return false
	}
	h.tail.Store(h.next)
	return true
}

// empty tells the consumer whether peek would return nil.
func (h *handover) empty() bool { return h.head.Load() == h.tail.Load() }

// peek returns the oldest frame, nil if there is none; it stays valid until
// pop.
func (h *handover) peek() []byte {
	at := h.head.Load()
	if at == h.tail.Load() {
		return nil
	}
	return h.slots[at%handSlots]
}

// list fills into with the oldest frames and returns their number; they stay valid
// until pop.
func (h *handover) list(into [][]byte) int {
	at := h.head.Load()
	n := min(int(h.tail.Load()-at), len(into))
	for i := range into[:n] {
		into[i] = h.slots[(at+uint32(i))%handSlots]
	}
	return n
}

// pop gives back the n oldest.
func (h *handover) pop(n int) { h.head.Store(h.head.Load() + uint32(n)) }

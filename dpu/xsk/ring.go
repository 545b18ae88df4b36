// SPDX-License-Identifier: Apache-2.0

package xsk

import (
	"errors"
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// errRingIndex means that the other side's index is one it cannot have
// reached. Nothing in the ring can be believed afterwards.
var errRingIndex = errors.New("ring index out of range")

// ring is one of the four single-producer single-consumer rings shared with
// the kernel. Both indices run freely and wrap at 2^32; a slot is index&mask.
//
// Ordering: the producer writes the slots, then publishes its index with a
// store-release; the consumer reads the index with a load-acquire, then the
// slots, then gives them back with a store-release of its own index. Go's
// atomics are sequentially consistent (LDAR/STLR on arm64), which covers both
// and also keeps the read of the wake-up flag behind the publication that must
// precede it.
type ring[T uint64 | unix.XDPDesc] struct {
	producer *atomic.Uint32
	consumer *atomic.Uint32
	flags    *atomic.Uint32
	slots    []T
	mask     uint32

	// The owner's index is exact; the other side's is what was last read of it.
	prod, cons uint32
}

// newRing lays a ring over shared memory. The offsets come from the kernel.
func newRing[T uint64 | unix.XDPDesc](mem []byte, off unix.XDPRingOffset, entries uint32) (ring[T], error) {
	var zero T
	size, align := uint64(unsafe.Sizeof(zero)), uint64(unsafe.Alignof(zero))
	end := uint64(len(mem))
	for _, o := range []uint64{off.Producer, off.Consumer, off.Flags} {
		if end < 4 || o > end-4 || o%4 != 0 {
			return ring[T]{}, fmt.Errorf("ring index at offset %d of %d bytes: %w", o, end, unix.EINVAL)
		}
	}
	if entries == 0 || entries&(entries-1) != 0 {
		return ring[T]{}, fmt.Errorf("ring of %d entries is not a power of two: %w", entries, unix.EINVAL)
	}
	if off.Desc%align != 0 || off.Desc > end || uint64(entries)*size > end-off.Desc {
		return ring[T]{}, fmt.Errorf("ring of %d entries at offset %d of %d bytes: %w", entries, off.Desc, end, unix.EINVAL)
	}
	base := unsafe.Pointer(unsafe.SliceData(mem))
	at := func(o uint64) *atomic.Uint32 { return (*atomic.Uint32)(unsafe.Add(base, o)) }
	r := ring[T]{
		producer: at(off.Producer),
		consumer: at(off.Consumer),
		flags:    at(off.Flags),
		slots:    unsafe.Slice((*T)(unsafe.Add(base, off.Desc)), entries),
		mask:     entries - 1,
	}
	r.prod, r.cons = r.producer.Load(), r.consumer.Load()
	if r.prod-r.cons > entries {
		return ring[T]{}, errRingIndex
	}
	return r, nil
}

// needWakeup tells whether the kernel sleeps on this ring and wants a system
// call to look at it.
func (r *ring[T]) needWakeup() bool {
	return r.flags.Load()&unix.XDP_RING_NEED_WAKEUP != 0
}

// producerRing is a ring that this side fills: fill and transmit.
type producerRing[T uint64 | unix.XDPDesc] struct{ ring[T] }

// room is how many entries can be put.
func (r *producerRing[T]) room() (uint32, error) {
	used, err := r.waiting()
	return uint32(len(r.slots)) - used, err
}

// waiting is how many entries, published or not, the kernel has not taken.
func (r *producerRing[T]) waiting() (uint32, error) {
	cons := r.consumer.Load()
	used := r.prod - cons
	if used > r.prod-r.cons { // the kernel went backwards, or past the producer
		return uint32(len(r.slots)), errRingIndex
	}
	r.cons = cons
	return used, nil
}

// put writes an entry, which the kernel sees after publish. The caller has
// made sure of room.
func (r *producerRing[T]) put(v T) {
	r.slots[r.prod&r.mask] = v
	r.prod++
}

func (r *producerRing[T]) publish() { r.producer.Store(r.prod) }

// consumerRing is a ring that the kernel fills: receive and completion.
type consumerRing[T uint64 | unix.XDPDesc] struct{ ring[T] }

// available is how many entries wait to be taken.
func (r *consumerRing[T]) available() (uint32, error) {
	prod := r.producer.Load()
	n := prod - r.cons
	// The kernel produces no more than fits, and never backwards.
	if n > uint32(len(r.slots)) || n < r.prod-r.cons {
		return 0, errRingIndex
	}
	r.prod = prod
	return n, nil
}

// take copies the next entry out. The caller has made sure there is one.
func (r *consumerRing[T]) take() T {
	v := r.slots[r.cons&r.mask]
	r.cons++
	return v
}

// release gives the slots of all taken entries back to the kernel.
func (r *consumerRing[T]) release() { r.consumer.Store(r.cons) }

// SPDX-License-Identifier: Apache-2.0

package offload

import (
	"fmt"
	"sync/atomic"
	"unsafe"
)

// HostQP is the host's end of one queue pair, in Go: the counterpart of the C
// shim's for Go programs, tests and synthetic peers. It works on the session
// memory directly.
//
// It has two halves, each owned by one goroutine at a time: the producer's
// (Emit, Room, HasRoom, Publish) and the consumer's (the others). The DPU is
// not trusted: what is read from its control line and ring is copied once and
// checked.
type HostQP struct {
	h2d, d2h []byte
	host     *HostLine
	dev      *DevLine

	// The producer's half.
	prod    uint64 // H2D built
	pubProd uint64 // H2D published
	h2dCons uint64 // H2D consumer as last read
	line    uint64 // who gets beyond it looks whether the lap is over
	lap     lap
	rung    uint32

	_ [CacheLine]byte

	// The consumer's half.
	seen  uint64 // D2H handed out by Next
	cons  uint64 // D2H given back
	dprod uint64 // D2H producer as last read
	arm   uint32
}

// NewHostQP returns the host's end of the queue pair of a channel and shard
// over the whole session memory.
func NewHostQP(mem []byte, l Layout, channel, shard int) (*HostQP, error) {
	if uint64(len(mem)) < l.TotalSize() {
		return nil, fmt.Errorf("session memory of %d bytes, layout wants %d: %w", len(mem), l.TotalSize(), ErrLayout)
	}
	o := l.QP(channel, shard)
	return &HostQP{
		h2d:  mem[o.H2D : o.H2D+uint64(l.H2DSize)],
		d2h:  mem[o.D2H : o.D2H+uint64(l.D2HSize)],
		host: (*HostLine)(unsafe.Pointer(&mem[o.HostLine])),
		dev:  (*DevLine)(unsafe.Pointer(&mem[o.DevLine])),
		lap:  lap{least: EarlyLap},
	}, nil
}

// Emit writes a record with n payload bytes, to be filled before Publish. It
// returns nil if the ring has no room.
func (q *HostQP) Emit(op Op, flags uint8, sock, seq, ack uint32, n int) []byte {
	size := uint64(len(q.h2d))
	space := uint64(RecordSpace(n))
	tail := size - q.prod&(size-1)
	need := space
	if tail < space || space > q.line-q.prod && q.lapOver() {
		need += tail
	}
	if size-(q.prod-q.h2dCons) < need && q.free() < need {
		q.lap.short(q.h2dCons)
		return nil
	}
	if need != space {
		PutRecord(q.h2d[size-tail:], Record{Op: OpPad})
		atomic.StoreUint64(&q.host.H2DPad, q.prod)
		q.prod += tail
		q.lap.begins(q.prod)
	}
	b := q.h2d[q.prod&(size-1):]
	PutRecord(b, Record{Op: op, Flags: flags, Len: uint16(n), Sock: sock, Seq: seq, Ack: ack})
	q.prod += space
	q.line = q.prod | (LapStep - 1)
	return b[RecordHdr : RecordHdr+n : RecordHdr+n]
}

func (q *HostQP) lapOver() bool {
	q.free()
	return q.lap.over(uint64(len(q.h2d)), q.prod, q.h2dCons)
}

// free looks how many bytes of the H2D ring are free. A consumer that lies gets
// no more records.
func (q *HostQP) free() uint64 {
	if c := atomic.LoadUint64(&q.dev.H2DCons); c >= q.h2dCons && c <= q.pubProd {
		q.h2dCons = c
	}
	return uint64(len(q.h2d)) - (q.prod - q.h2dCons)
}

// Room is the largest payload that Emit takes now, at most MaxPayload, if keep
// bytes of the ring are to stay free for other records; -1 if not even an empty
// record fits.
func (q *HostQP) Room(keep int) int {
	size := uint64(len(q.h2d))
	n := int(size-(q.prod-q.h2dCons)) - keep
	if n < RecordHdr+MaxPayload {
		if n = int(q.free()) - keep; n < RecordHdr+MaxPayload {
			q.lap.short(q.h2dCons)
		}
	}
	n -= RecordHdr
	// A record that does not fit before the end of the ring starts at its
	// beginning, which costs the padding.
	if tail := int(size - q.prod&(size-1)); tail-RecordHdr < min(n, MaxPayload) {
		n = max(min(n, tail-RecordHdr), n-tail)
	}
	if n < 0 {
		return -1
	}
	return min(n&^(RecordAlign-1), MaxPayload)
}

// HasRoom tells whether half of the H2D ring is free: the condition under which
// the DPU wakes who armed for space.
func (q *HostQP) HasRoom() bool { return q.free() >= uint64(len(q.h2d))/2 }

// Publish makes the records visible to the DPU and tells whether the caller
// has to ring this shard's doorbell.
func (q *HostQP) Publish() (ring bool) {
	if q.pubProd == q.prod {
		return false
	}
	q.pubProd = q.prod
	// Go's atomics are sequentially consistent: the load below cannot pass
	// the store, which is what the doorbell protocol needs.
	atomic.StoreUint64(&q.host.H2DProd, q.prod)
	db := atomic.LoadUint32(&q.dev.DBArm)
	if db&1 == 1 && db != q.rung {
		q.rung = db
		return true
	}
	return false
}

// Next returns the next record from the DPU; payload stays valid until
// Release. An error wraps ErrProtocol: the session is lost.
func (q *HostQP) Next() (rec Record, payload []byte, ok bool, err error) {
	size := uint64(len(q.d2h))
	for {
		if q.seen == q.dprod {
			p := atomic.LoadUint64(&q.dev.D2HProd)
			if p == q.dprod {
				return rec, nil, false, nil
			}
			if p < q.dprod || p-q.cons > size || p%RecordAlign != 0 {
				return rec, nil, false, fmt.Errorf("D2H producer %d after %d: %w", p, q.dprod, ErrProtocol)
			}
			q.dprod = p
		}
		b := q.d2h[q.seen&(size-1):]
		rec = GetRecord(b)
		space, pad := uint64(RecordSpace(int(rec.Len))), rec.Op == OpPad
		if pad {
			space = uint64(len(b))
		}
		if !pad && rec.Len > MaxPayload || space > uint64(len(b)) || space > q.dprod-q.seen {
			return rec, nil, false, fmt.Errorf("D2H record %d of %d bytes does not fit: %w", rec.Op, rec.Len, ErrProtocol)
		}
		q.seen += space
		if !pad {
			n := int(rec.Len)
			return rec, b[RecordHdr : RecordHdr+n : RecordHdr+n], true, nil
		}
	}
}

// Seen is the position behind the last record that Next returned.
func (q *HostQP) Seen() uint64 { return q.seen }

// Held is how many bytes of the D2H ring have been seen and not given back.
func (q *HostQP) Held() uint64 { return q.seen - q.cons }

// Release gives back the ring space of every record handed out so far.
func (q *HostQP) Release() { q.ReleaseTo(q.seen) }

// ReleaseTo gives back the ring space before pos, which is not behind what was
// given back already nor ahead of Seen. The payloads of later records stay
// valid.
func (q *HostQP) ReleaseTo(pos uint64) {
	if q.cons != pos {
		q.cons = pos
		atomic.StoreUint64(&q.host.D2HCons, pos)
	}
}

// Moved tells whether there are records that Next has not returned.
func (q *HostQP) Moved() bool { return atomic.LoadUint64(&q.dev.D2HProd) != q.seen }

// Arm asks for an interrupt and tells whether the caller may sleep: false
// means that records came in the meantime (the request is withdrawn).
func (q *HostQP) Arm() bool { return q.ArmFor(false) }

// ArmFor is Arm, for H2D space too if space is set. The caller then looks at
// HasRoom once more before it sleeps.
func (q *HostQP) ArmFor(space bool) bool {
	want := uint32(0)
	if space {
		want = 1
	}
	q.arm += 1 + q.arm&1
	atomic.StoreUint64(&q.host.D2HSeen, q.seen)
	atomic.StoreUint32(&q.host.SpaceWant, want)
	atomic.StoreUint32(&q.host.Arm, q.arm)
	if q.Moved() {
		q.Disarm()
		return false
	}
	return true
}

// Disarm withdraws the request for an interrupt.
func (q *HostQP) Disarm() {
	if q.arm&1 == 1 {
		q.arm++
		atomic.StoreUint32(&q.host.Arm, q.arm)
	}
}

// SPDX-License-Identifier: Apache-2.0

package pcie

import (
	"fmt"

	"pno/offload"
)

// Transport is one shard's access to a session across a Bus.
type Transport struct {
	bus   *Bus
	inner offload.Transport
	size  uint64

	posted  uint64  // operations so far, to find a slot
	slots   []int64 // completion of the last Outstanding operations
	readyAt int64   // when the last doorbell's latency is over

	writes, reads, interrupts queue
	lastWrite, lastRead       int64 // effects of the latest ones
	lastDone                  int64 // completion of the latest read

	one [1]*offload.DMA // keeps Post's argument off the heap
}

var _ offload.Transport = (*Transport)(nil)

// event is a posted operation, or an interrupt.
type event struct {
	op      *offload.DMA // of the caller; nil for an interrupt
	access  offload.DMA  // the same operation on the inner transport
	channel int
	seq     uint64
	at      int64 // when it takes effect at the host
	done    int64 // when the DPU knows
}

// Post implements offload.Transport.
func (t *Transport) Post(ops ...*offload.DMA) error {
	for _, op := range ops {
		if err := t.check(op); err != nil {
			return err
		}
	}
	now := t.bus.now()
	for _, op := range ops {
		op.Done = false
		t.post(now, op)
	}
	return nil
}

func (t *Transport) check(op *offload.DMA) error {
	n := uint64(len(op.Buf))
	if op.Off > t.size || n > t.size-op.Off {
		return fmt.Errorf("DMA of %d bytes at %#x of %#x: %w", n, op.Off, t.size, offload.ErrBounds)
	}
	if op.Line && (n > offload.CacheLine || n%8 != 0 || op.Off%8 != 0) {
		return fmt.Errorf("line access of %d bytes at %#x: %w", n, op.Off, offload.ErrBounds)
	}
	return nil
}

func (t *Transport) post(now int64, op *offload.DMA) {
	p := &t.bus.profile
	start := max(now, t.readyAt)
	var slot *int64
	if len(t.slots) > 0 {
		slot = &t.slots[t.posted%uint64(len(t.slots))]
		start = max(start, *slot)
	}
	t.posted++
	e := event{op: op, seq: t.posted, access: offload.DMA{Kind: op.Kind, Line: op.Line, Off: op.Off, Buf: op.Buf}}
	if op.Kind == offload.DMAWrite {
		crossed := t.bus.cross(&t.bus.write, start, len(op.Buf))
		e.at = max(crossed+int64(p.WriteLatency), t.lastWrite)
		e.done = e.at
		t.lastWrite = e.at
		t.writes.push(e)
	} else {
		crossed := t.bus.cross(&t.bus.reads, start, len(op.Buf))
		e.at = max(crossed+int64(p.ReadLatency)/2, t.lastWrite, t.lastRead)
		e.done = max(e.at+int64(p.ReadLatency)-int64(p.ReadLatency)/2, t.lastDone)
		t.lastRead, t.lastDone = e.at, e.done
		t.reads.push(e)
	}
	if slot != nil {
		*slot = e.done
	}
}

// Interrupt implements offload.Transport: the message follows the writes
// posted before it.
func (t *Transport) Interrupt(channel int) {
	t.posted++
	at := max(t.bus.now()+int64(t.bus.profile.InterruptLatency), t.lastWrite)
	t.interrupts.push(event{channel: channel, seq: t.posted, at: at, done: at})
}

// Poll implements offload.Transport.
func (t *Transport) Poll() int64 {
	if t.writes.len()+t.reads.len()+t.interrupts.len() == 0 {
		return 0
	}
	now := t.bus.now()
	for q := t.next(); q != nil; q = t.next() {
		e := q.pending()
		if e.at > now {
			break
		}
		t.effect(e)
		q.taken++
		if q != &t.reads {
			q.pop()
		}
	}
	for t.reads.taken > 0 && t.reads.head().done <= now {
		t.reads.head().op.Done = true
		t.reads.pop()
	}
	return t.wait(now)
}

// next returns the queue whose first event that has not taken effect is the
// earliest, or nil if all have.
func (t *Transport) next() *queue {
	var first *queue
	for _, q := range [...]*queue{&t.writes, &t.reads, &t.interrupts} {
		if q.taken == q.len() {
			continue
		}
		if first == nil || q.pending().before(first.pending()) {
			first = q
		}
	}
	return first
}

func (e *event) before(o *event) bool {
	if e.at != o.at {
		return e.at < o.at
	}
	return e.seq < o.seq
}

func (t *Transport) effect(e *event) {
	if e.op == nil {
		t.inner.Interrupt(e.channel)
		return
	}
	t.one[0] = &e.access
	// The bounds were checked when it was posted: the inner transport has
	// nothing left to refuse.
	_ = t.inner.Post(t.one[:]...)
	if e.op.Kind == offload.DMAWrite {
		e.op.Done = true
	}
}

// wait returns the time until something is due, at least 1 while anything is
// in flight.
func (t *Transport) wait(now int64) int64 {
	var due int64
	if q := t.next(); q != nil {
		due = q.pending().at
	}
	if t.reads.taken > 0 && (due == 0 || t.reads.head().done < due) {
		due = t.reads.head().done
	}
	if due == 0 {
		return 0
	}
	return max(due-now, 1)
}

// DoorbellFD implements offload.Transport.
func (t *Transport) DoorbellFD() int { return t.inner.DoorbellFD() }

// DoorbellAck implements offload.Transport. The doorbell's descriptor wakes
// the DPU at once; its latency delays the first operation after it.
func (t *Transport) DoorbellAck() {
	t.inner.DoorbellAck()
	t.readyAt = t.bus.now() + int64(t.bus.profile.DoorbellLatency)
}

// Close implements offload.Transport: what is still in flight takes effect
// now, since a card that goes away does not take writes back.
func (t *Transport) Close() error {
	for q := t.next(); q != nil; q = t.next() {
		t.effect(q.pending())
		q.taken++
		if q != &t.reads {
			q.pop()
		}
	}
	for t.reads.len() > 0 {
		t.reads.head().op.Done = true
		t.reads.pop()
	}
	return t.inner.Close()
}

// queue is a first-in first-out queue of events. The first taken of them have
// had their effect and wait for their completion.
type queue struct {
	slots      []event
	first, end uint64
	taken      int
}

func (q *queue) len() int        { return int(q.end - q.first) }
func (q *queue) head() *event    { return &q.slots[q.first&uint64(len(q.slots)-1)] }
func (q *queue) pending() *event { return &q.slots[(q.first+uint64(q.taken))&uint64(len(q.slots)-1)] }

func (q *queue) push(e event) {
	if q.len() == len(q.slots) {
		q.grow()
	}
	q.slots[q.end&uint64(len(q.slots)-1)] = e
	q.end++
}

func (q *queue) grow() {
	slots := make([]event, max(64, 2*len(q.slots)))
	n := q.len()
	for i := range n {
		slots[i] = q.slots[(q.first+uint64(i))&uint64(len(q.slots)-1)]
	}
	q.slots, q.first, q.end = slots, 0, uint64(n)
}

func (q *queue) pop() {
	*q.head() = event{}
	q.first++
	q.taken--
}

// SPDX-License-Identifier: Apache-2.0

package shard

import (
	"errors"
	"runtime"

	"pno/dpu/link"
	"pno/dpu/report"
	"pno/dpu/rss"
)

// headStart is how many frames a shard works off in about the time that a host
// which sleeps takes to wake up.
const headStart = 6

// receive takes a batch of frames from each queue and from the other shards.
func (s *Shard) receive(now int64) (busy bool) {
	for i, p := range s.ports {
		for _, q := range p.Queues {
			if s.receiveQueue(now, i, p, q) {
				busy = true
			}
		}
	}
	for _, list := range s.in {
		for i, h := range list {
			// Together: the stack takes segments that follow each other as one.
			if n := h.list(s.frames[:]); n > 0 {
				s.ports[i].Endpoint.Deliver(s.frames[:n]...)
				h.pop(n)
				clear(s.frames[:n])
				busy = true
			}
		}
	}
	return busy
}

// receiveQueue takes a batch from one queue. A host that sleeps is woken before
// the last frames of it, and finds what they bring when it is awake.
func (s *Shard) receiveQueue(now int64, i int, p *port, q link.Queue) bool {
	n, err := q.Recv(s.frames[:])
	if err != nil && !errors.Is(err, link.ErrClosed) {
		s.log.Warn("receive from link", "shard", s.Index, "err", err)
	}
	if n == 0 {
		return false
	}
	s.stats.RxFrames += uint64(n)
	own, ahead := s.frames[:0], split(s.frames[:n])
	for k, f := range s.frames[:n] {
		if k == ahead && !s.Table.Awake() {
			p.Endpoint.Deliver(own...)
			own = own[:0]
			runtime.Gosched() // the TCP processor
			s.Table.Ahead(now)
		}
		switch to := s.rss.Frame(f); {
		case to == s.Index:
			own = append(own, f)
		case to == rss.All:
			own = append(own, f)
			for j := range s.peers {
				if j != s.Index {
					s.hand(j, i, f)
				}
			}
		default:
			s.hand(to, i, f)
		}
	}
	p.Endpoint.Deliver(own...)
	q.Release()
	clear(s.frames[:n])
	for j, poke := range s.poke {
		if poke {
			s.poke[j] = false
			for _, h := range s.out[j] {
				h.publish()
			}
			s.peers[j].Wake()
		}
	}
	return true
}

// split tells before which frame of a batch a host that sleeps is woken: one of
// the last, but not between two of the same connection. What a batch brings of
// one in a row the stack takes as one.
func split(batch [][]byte) int {
	for k := max(1, len(batch)-headStart); k < len(batch); k++ {
		if !sameFlow(batch[k-1], batch[k]) {
			return k
		}
	}
	return len(batch)
}

// sameFlow compares the addresses and ports of IPv4 packets without options. Of
// others it may say anything.
func sameFlow(a, b []byte) bool {
	const from, to = 26, 38
	return len(a) >= to && len(b) >= to && string(a[from:to]) == string(b[from:to])
}

// hand gives a frame to the shard that it belongs to.
func (s *Shard) hand(to, port int, f []byte) {
	if !s.out[to][port].put(f) {
		s.stats.HandFull++ // as a card whose receive ring is full
	} else {
		s.stats.RxHanded++
	}
	s.poke[to] = true
}

// transmit moves what the stack sent to the wire, with one kick a queue.
func (s *Shard) transmit() (busy bool) {
	for _, p := range s.ports {
		if p.via != nil {
			n := p.Endpoint.Drain(p.via)
			if p.via.publish() {
				p.peer.Wake()
			}
			s.stats.TxHanded += uint64(n)
			busy = busy || n > 0
			continue
		}
		q := p.Queues[0]
		n := p.Endpoint.Drain(q)
		for _, h := range p.from {
			n += s.forward(q, h)
		}
		s.stats.TxFrames += uint64(n)
		// What a full device leaves is offered again each turn, but is no
		// reason not to sleep.
		busy = busy || n > 0
		if n > 0 || q.TxPending() {
			if err := q.Flush(); err != nil && !errors.Is(err, link.ErrClosed) {
				s.log.Warn("send to link", "shard", s.Index, "err", err)
			}
		}
	}
	return busy
}

// forward sends what another shard handed over; what does not fit stays.
func (s *Shard) forward(q link.Queue, h *handover) (n int) {
	for {
		f := h.peek()
		if f == nil {
			return n
		}
		b := q.TxAlloc()
		if b == nil {
			return n
		}
		q.TxCommit(copy(b, f))
		h.pop(1)
		n++
	}
}

// Report returns the shard's own counters. Called by the loop.
func (s *Shard) Report() report.Shard {
	r := s.stats
	for _, p := range s.ports {
		waits, peak, _ := p.Endpoint.Held()
		r.TxHeld += waits
		r.TxHeldMax = max(r.TxHeldMax, peak)
	}
	return r
}

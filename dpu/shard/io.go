// SPDX-License-Identifier: Apache-2.0

package shard

import (
	"errors"

	"pno/dpu/link"
	"pno/dpu/report"
	"pno/dpu/rss"
)

// receive takes a batch of frames from each queue and from the other shards.
func (s *Shard) receive() (busy bool) {
	for i, p := range s.ports {
		for _, q := range p.Queues {
			if s.receiveQueue(i, p, q) {
				busy = true
			}
		}
	}
	for _, list := range s.in {
		for i, h := range list {
			for n := 0; n < rxBatch; n++ {
				f := h.peek()
				if f == nil {
					break
				}
				s.ports[i].Endpoint.Deliver(f)
				h.pop()
				busy = true
			}
		}
	}
	return busy
}

func (s *Shard) receiveQueue(i int, p *port, q link.Queue) bool {
	n, err := q.Recv(s.frames[:])
	if err != nil && !errors.Is(err, link.ErrClosed) {
		s.log.Warn("receive from link", "shard", s.Index, "err", err)
	}
	if n == 0 {
		return false
	}
	s.stats.RxFrames += uint64(n)
	own := s.frames[:0]
	for _, f := range s.frames[:n] {
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
		h.pop()
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

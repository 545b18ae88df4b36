// SPDX-License-Identifier: Apache-2.0

package pcie

import (
	"math/bits"
	"sync"
	"time"

	"pno/offload"
)

// Bus is one physical link.
type Bus struct {
	profile Profile
	now     func() int64 // nanoseconds

	mu    sync.Mutex
	reads pipe
	write pipe
}

// pipe is one direction of the link.
type pipe struct {
	rate   uint64 // bytes a second, 0 is infinite
	freeAt int64
}

// NewBus returns a link with the given parameters.
func NewBus(p Profile) *Bus {
	start := time.Now()
	return newBus(p, func() int64 { return int64(time.Since(start)) })
}

func newBus(p Profile, now func() int64) *Bus {
	return &Bus{profile: p, now: now, reads: pipe{rate: p.ReadBandwidth}, write: pipe{rate: p.WriteBandwidth}}
}

// Wrap returns inner seen through the link. inner must complete operations
// within Post and belongs to the wrapper from now on; size is that of the host
// memory it reaches.
func (b *Bus) Wrap(inner offload.Transport, size uint64) *Transport {
	t := &Transport{bus: b, inner: inner, size: size}
	if n := b.profile.Outstanding; n > 0 {
		t.slots = make([]int64, n)
	}
	return t
}

// cross reserves the link for n bytes, from at the earliest, and returns when
// the last of them has crossed.
func (b *Bus) cross(p *pipe, from int64, n int) int64 {
	if p.rate == 0 {
		return from
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	p.freeAt = max(p.freeAt, from) + transferTime(n, p.rate)
	return p.freeAt
}

// transferTime rounds up, so that many small operations cannot cross for free.
func transferTime(n int, rate uint64) int64 {
	hi, lo := bits.Mul64(uint64(n), uint64(time.Second))
	q, r := bits.Div64(hi, lo, rate)
	if r > 0 {
		q++
	}
	return int64(q)
}

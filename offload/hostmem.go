// SPDX-License-Identifier: Apache-2.0

package offload

import (
	"fmt"
	"sync/atomic"
	"unsafe"
)

// StatsCount is how many counters the statistics page holds.
const StatsCount = StatsSize / 8

// HostMemory is a session memory as its process sees it: queue pairs, the
// status that hostd writes, and the counters that the process writes. Any
// goroutine may call, as long as the memory stays mapped.
type HostMemory struct {
	mem []byte
	l   Layout
}

// NewHostMemory returns the process's view of mem, which must hold the layout.
func NewHostMemory(mem []byte, l Layout) (*HostMemory, error) {
	if err := l.Check(); err != nil {
		return nil, err
	}
	if uint64(len(mem)) < l.TotalSize() {
		return nil, fmt.Errorf("session memory of %d bytes, layout wants %d: %w", len(mem), l.TotalSize(), ErrLayout)
	}
	return &HostMemory{mem, l}, nil
}

// QP returns the host's end of a queue pair.
func (m *HostMemory) QP(channel, shard int) (*HostQP, error) {
	return NewHostQP(m.mem, m.l, channel, shard)
}

// Status is one of StatusUp …; any value may come.
func (m *HostMemory) Status() uint32 {
	return atomic.LoadUint32(&(*SessionHeader)(unsafe.Pointer(&m.mem[0])).Status)
}

// Counters is the statistics page.
func (m *HostMemory) Counters() *[StatsCount]atomic.Uint64 {
	return (*[StatsCount]atomic.Uint64)(unsafe.Pointer(&m.mem[StatsOffset]))
}

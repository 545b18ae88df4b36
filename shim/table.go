// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"sync"
	"sync/atomic"

	"pno/offload"
)

const slotsAPage = 1024

// entry is what a handle stands for: a connection or one shard's part of a
// listener.
type entry struct {
	handle uint32
	conn   *Conn
	lis    *binding
}

// table finds entries by slot. Looking up takes no lock.
type table struct {
	mu    sync.Mutex // for changes
	pages atomic.Pointer[[]*page]

	// Of the handles that are chosen here.
	used uint32   // slots that were ever taken; slot 0 stays free: no handle is 0
	free []uint32 // former handles, in the order in which they were given up
}

type page [slotsAPage]atomic.Pointer[entry]

func (t *table) get(handle uint32) *entry {
	pages := t.pages.Load()
	n := handle & offload.HandleSlotMask
	if pages == nil || n/slotsAPage >= uint32(len(*pages)) {
		return nil
	}
	p := (*pages)[n/slotsAPage]
	if p == nil {
		return nil
	}
	if e := p[n%slotsAPage].Load(); e != nil && e.handle == handle {
		return e
	}
	return nil
}

// slot makes the place of a slot. Locked.
func (t *table) slot(n uint32) *atomic.Pointer[entry] {
	var pages []*page
	if old := t.pages.Load(); old != nil {
		pages = *old
	}
	if at := n / slotsAPage; at >= uint32(len(pages)) || pages[at] == nil {
		more := make([]*page, max(at+1, uint32(len(pages))))
		copy(more, pages)
		more[at] = new(page)
		t.pages.Store(&more)
		pages = more
	}
	return &pages[n/slotsAPage][n%slotsAPage]
}

// add gives e a handle of ours; false: none is left. A slot rests as long as
// possible before it is used under its next generation.
func (t *table) add(e *entry) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	var n, gen uint32
	switch {
	case len(t.free) > 0 && t.used >= slotsAPage:
		n = t.free[0] & offload.HandleSlotMask
		gen = (t.free[0]>>offload.HandleGenShift + 1) & offload.HandleGenMask
		t.free = t.free[1:]
	case t.used < offload.HandleSlotMask:
		t.used++
		n = t.used
	default:
		return false
	}
	e.handle = offload.HandleHost | gen<<offload.HandleGenShift | n
	t.slot(n).Store(e)
	return true
}

// enter takes in a handle that the DPU chose; false: its slot is taken.
func (t *table) enter(e *entry) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	at := t.slot(e.handle & offload.HandleSlotMask)
	if at.Load() != nil {
		return false
	}
	at.Store(e)
	return true
}

// drop forgets e: records to it are stale from now on.
func (t *table) drop(e *entry) {
	t.mu.Lock()
	defer t.mu.Unlock()
	at := t.slot(e.handle & offload.HandleSlotMask)
	if at.Load() != e {
		return
	}
	at.Store(nil)
	if e.handle&offload.HandleHost != 0 {
		t.free = append(t.free, e.handle)
	}
}

// each calls visit for every entry.
func (t *table) each(visit func(*entry)) {
	pages := t.pages.Load()
	if pages == nil {
		return
	}
	for _, p := range *pages {
		if p == nil {
			continue
		}
		for i := range p {
			if e := p[i].Load(); e != nil {
				visit(e)
			}
		}
	}
}

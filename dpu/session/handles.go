// SPDX-License-Identifier: Apache-2.0

package session

import "pno/offload"

const (
	pageBits = 9
	pageSize = 1 << pageBits
)

// handles is a session's table from handle to hold: two sparse arrays, one
// for the handles that the host chose and one for the DPU's own.
type handles struct {
	pages [2][]*[pageSize]*hold
	count int

	// The DPU's own slots.
	next uint32   // first slot never used; 0 is never given out
	gens []uint16 // by slot
	free []uint32
}

func side(h uint32) int { return int(h >> 31) }

// get returns the hold of a handle, nil if the handle is unknown or stale.
func (t *handles) get(h uint32) *hold {
	slot := h & offload.HandleSlotMask
	pages := t.pages[side(h)]
	if int(slot>>pageBits) >= len(pages) {
		return nil
	}
	p := pages[slot>>pageBits]
	if p == nil {
		return nil
	}
	if e := p[slot&(pageSize-1)]; e != nil && e.handle == h {
		return e
	}
	return nil
}

// put enters a hold under its handle and reports whether the slot was free.
func (t *handles) put(e *hold) bool {
	slot := e.handle & offload.HandleSlotMask
	pages := &t.pages[side(e.handle)]
	for int(slot>>pageBits) >= len(*pages) {
		*pages = append(*pages, nil)
	}
	p := (*pages)[slot>>pageBits]
	if p == nil {
		p = new([pageSize]*hold)
		(*pages)[slot>>pageBits] = p
	}
	if p[slot&(pageSize-1)] != nil {
		return false
	}
	p[slot&(pageSize-1)] = e
	t.count++
	return true
}

// remove takes a hold out; a slot of the DPU's becomes free again.
func (t *handles) remove(e *hold) {
	slot := e.handle & offload.HandleSlotMask
	p := t.pages[side(e.handle)][slot>>pageBits]
	p[slot&(pageSize-1)] = nil
	t.count--
	if side(e.handle) == 0 && slot < t.next {
		t.free = append(t.free, slot)
	}
}

// choose returns a new handle of the DPU's: a free slot under its next
// generation, so that a record for the slot's last user is recognised.
func (t *handles) choose() (uint32, bool) {
	if t.next == 0 {
		t.next, t.gens = 1, append(t.gens, 0)
	}
	var slot uint32
	if n := len(t.free); n > 0 {
		slot = t.free[n-1]
		t.free = t.free[:n-1]
	} else {
		if t.next > offload.HandleSlotMask {
			return 0, false
		}
		slot = t.next
		t.next++
		t.gens = append(t.gens, 0)
	}
	t.gens[slot] = (t.gens[slot] + 1) & offload.HandleGenMask
	return uint32(t.gens[slot])<<offload.HandleGenShift | slot, true
}

// each calls f for every hold. f may remove the hold it is given.
func (t *handles) each(f func(*hold)) {
	for s := range t.pages {
		for _, p := range t.pages[s] {
			if p == nil {
				continue
			}
			for _, e := range p {
				if e != nil {
					f(e)
				}
			}
		}
	}
}

// inherit prepares an empty table to receive holds under handles that a
// parent's table chose: the same slots count as used, under the same
// generations.
func (t *handles) inherit(next uint32, gens []uint16) {
	if t.next >= next {
		return
	}
	if t.next == 0 {
		t.next, t.gens = 1, append(t.gens, 0)
	}
	old := t.next
	t.gens = append(t.gens[:old], gens[old:next]...)
	t.next = next
	for slot := next - 1; slot >= old; slot-- {
		t.free = append(t.free, slot)
	}
}

// settle takes the slots of inherited handles off the free list.
func (t *handles) settle() {
	kept := t.free[:0]
	for _, slot := range t.free {
		if !t.used(0, slot) {
			kept = append(kept, slot)
		}
	}
	t.free = kept
}

func (t *handles) used(side int, slot uint32) bool {
	pages := t.pages[side]
	if int(slot>>pageBits) >= len(pages) || pages[slot>>pageBits] == nil {
		return false
	}
	return pages[slot>>pageBits][slot&(pageSize-1)] != nil
}

// reserve prepares put of a handle that another session's table chose, and
// reports whether its slot is free here.
func (t *handles) reserve(h uint32) bool {
	slot := h & offload.HandleSlotMask
	if t.used(side(h), slot) {
		return false
	}
	if side(h) == 1 {
		return true
	}
	if slot == 0 || slot > t.next+pageSize {
		return false
	}
	gens := make([]uint16, slot+1)
	t.inherit(slot+1, gens)
	t.gens[slot] = uint16(h >> offload.HandleGenShift & offload.HandleGenMask)
	for i, f := range t.free {
		if f == slot {
			t.free = append(t.free[:i], t.free[i+1:]...)
			break
		}
	}
	return true
}

// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"testing"

	"pno/offload"
)

func TestHandlesRestAndAge(t *testing.T) {
	var tab table
	seen := map[uint32]bool{}
	for range 3 * slotsAPage {
		e := new(entry)
		if !tab.add(e) || e.handle&offload.HandleHost == 0 || e.handle&offload.HandleSlotMask == 0 {
			t.Fatalf("handle %#x", e.handle)
		}
		if seen[e.handle] {
			t.Fatalf("handle %#x is given out twice", e.handle)
		}
		seen[e.handle] = true
		if tab.get(e.handle) != e {
			t.Fatalf("handle %#x is not found", e.handle)
		}
		tab.drop(e)
		if tab.get(e.handle) != nil {
			t.Fatalf("handle %#x is found after its end", e.handle)
		}
	}
	if n := len(*tab.pages.Load()); n > 2 {
		t.Errorf("%d pages for one handle at a time", n)
	}
}

func TestHandlesOfTheDPU(t *testing.T) {
	var tab table
	far := &entry{handle: 5<<offload.HandleGenShift | offload.HandleSlotMask}
	if !tab.enter(far) || tab.get(far.handle) != far {
		t.Fatal("the last slot cannot be used")
	}
	if again := (&entry{handle: 6<<offload.HandleGenShift | offload.HandleSlotMask}); tab.enter(again) {
		t.Error("a slot in use is taken")
	}
	for _, h := range []uint32{0, 1, offload.HandleSlotMask - 1, 4<<offload.HandleGenShift | offload.HandleSlotMask} {
		if tab.get(h) != nil {
			t.Errorf("handle %#x is found", h)
		}
	}
	n := 0
	tab.each(func(e *entry) { n++ })
	if n != 1 {
		t.Errorf("%d entries, want 1", n)
	}
}

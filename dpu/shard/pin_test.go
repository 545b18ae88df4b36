// SPDX-License-Identifier: Apache-2.0

package shard

import (
	"testing"

	"golang.org/x/sys/unix"
)

func affinity(t *testing.T) (set unix.CPUSet) {
	t.Helper()
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		t.Error(err)
	}
	return set
}

// The goroutine stays on its core, and others stay where they were.
func TestPin(t *testing.T) {
	before := affinity(t)
	may, err := Cores()
	if err != nil || len(may) != before.Count() {
		t.Fatalf("cores %v, %v; want %d", may, err, before.Count())
	}
	core := may[0]
	if err := CheckCores([]int{core}); err != nil {
		t.Error(err)
	}
	for _, c := range []int{-1, 1 << 20} {
		if err := CheckCores([]int{c}); err == nil {
			t.Errorf("core %d is accepted", c)
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := Pin(core); err != nil {
			t.Error(err)
		}
		if set := affinity(t); set.Count() != 1 || !set.IsSet(core) {
			t.Errorf("on %d cores, want core %d alone", set.Count(), core)
		}
	}()
	<-done
	if after := affinity(t); after != before {
		t.Error("another goroutine was moved, too")
	}
}

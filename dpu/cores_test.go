// SPDX-License-Identifier: Apache-2.0

package dpu_test

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"pno/dpu"
	"pno/dpu/shard"
)

// A DPU does not start on cores that it has not, or not for every shard.
func TestCoresErrors(t *testing.T) {
	core := usableCores(t, 1)[0]
	for _, c := range []struct {
		shards int
		cores  []int
		want   string
	}{
		{2, []int{core}, "1 cores for 2 shards, want one each"},
		{1, []int{-1}, "this process may not run on core -1"},
		{2, []int{core, 1 << 20}, "this process may not run on core 1048576"},
	} {
		_, err := dpu.New(dpu.Config{Shards: c.shards, Cores: c.cores})
		if err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%d shards on %v: %v, want %q", c.shards, c.cores, err, c.want)
		}
	}
}

// usableCores are n that this process may run on, the same one again if need be.
func usableCores(t *testing.T, n int) []int {
	t.Helper()
	may, err := shard.Cores()
	if err != nil {
		t.Fatal(err)
	}
	return slices.Repeat(may, n)[:n]
}

// stays tells whether a thread of this process may run on that core alone.
func stays(t *testing.T, core int) bool {
	t.Helper()
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(threads, func(e os.DirEntry) bool {
		tid, err := strconv.Atoi(e.Name())
		if err != nil {
			t.Fatal(err)
		}
		var set unix.CPUSet
		if err := unix.SchedGetaffinity(tid, &set); err != nil && err != unix.ESRCH { // it may have ended
			t.Fatal(err)
		}
		return set.Count() == 1 && set.IsSet(core)
	})
}

// SPDX-License-Identifier: Apache-2.0

package shard

import (
	"fmt"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"
)

// Cores are those that this process may run on.
func Cores() (list []int, err error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return nil, fmt.Errorf("read which cores the process may use: %w", err)
	}
	for c := range 64 * len(set) {
		if set.IsSet(c) {
			list = append(list, c)
		}
	}
	return list, nil
}

// CheckCores tells whether each is a core that this process may run on.
func CheckCores(cores []int) error {
	may, err := Cores()
	if err != nil {
		return err
	}
	for _, c := range cores {
		if !slices.Contains(may, c) {
			return fmt.Errorf("this process may not run on core %d: it has %d cores, see taskset -p or cpuset.cpus", c, len(may))
		}
	}
	return nil
}

// Pin ties the calling goroutine to its thread, and the thread to a core. The
// thread ends with the goroutine. After an error nothing is tied.
func Pin(core int) error {
	runtime.LockOSThread()
	var only unix.CPUSet
	only.Set(core)
	if err := unix.SchedSetaffinity(0, &only); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("stay on core %d: %w", core, err)
	}
	return nil
}

// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// turn is how long a batch job may have a core while others wait for it.
const turn = 30 * time.Millisecond

// asBatch has what this goroutine starts run as batch jobs, until the function that
// it returns is called: none takes a core away from another that has just found work,
// and each goes on until it has no more of it, or its turn is over (Linux before 6.12
// does not take the length of a turn from a program, and uses its own, of some
// milliseconds).
//
// A program that is to be measured busy, on a core that it shares, would otherwise be
// measured in pieces: every message for one of the others ends its turn, its caches
// are theirs when it comes back, and what waits for it is one event and not many.
func asBatch() (end func(), err error) {
	runtime.LockOSThread() // what is started inherits it from the thread
	former, err := unix.SchedGetAttr(0, 0)
	if err == nil {
		batch := *former
		batch.Policy, batch.Runtime = unix.SCHED_BATCH, uint64(turn)
		err = unix.SchedSetAttr(0, &batch, 0)
	}
	if err != nil {
		runtime.UnlockOSThread()
		return nil, fmt.Errorf("make programs batch jobs: %w", err)
	}
	return func() {
		if unix.SchedSetAttr(0, former, 0) == nil {
			runtime.UnlockOSThread()
		} // else the thread ends with its goroutine
	}, nil
}

// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// policyOfChild is how a program that starts now is scheduled.
func policyOfChild(t *testing.T) uint32 {
	t.Helper()
	c := exec.Command("sleep", "60")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = c.Process.Kill()
		_ = c.Wait() // it was killed
	}()
	attr, err := unix.SchedGetAttr(c.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	return attr.Policy
}

func TestAsBatch(t *testing.T) {
	former := policyOfChild(t)
	end, err := asBatch()
	if err != nil {
		t.Fatal(err)
	}
	during := policyOfChild(t)
	end()
	if after := policyOfChild(t); during != unix.SCHED_BATCH || after != former {
		t.Errorf("policy %d during it, want %d; %d before, %d after", during, unix.SCHED_BATCH, former, after)
	}
}

func TestSleeps(t *testing.T) {
	before, err := sleeps(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for until := time.Now().Add(20 * time.Second); ; {
		time.Sleep(10 * time.Millisecond)
		n, err := sleeps(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		if n > before {
			break
		}
		if time.Now().After(until) {
			t.Fatal("slept, and was not counted")
		}
	}
	if _, err := sleeps(1 << 30); err == nil {
		t.Error("sleeps of a process that cannot be")
	}
}

// SPDX-License-Identifier: Apache-2.0

// Package secmem is memory for secrets: mapped apart from the Go heap, locked
// against swapping, left out of core dumps and wiped in children of fork and on
// Free.
//
// A Buffer belongs to whoever made it; nothing in it may be used after Free.
// HoldProcess changes the whole process and is called once, early.
package secmem

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Buffer is a piece of such memory.
type Buffer struct {
	mapped []byte
	n      int
}

// New returns n bytes of zeros. When the limit of locked memory is too small it
// fails.
func New(n int) (*Buffer, error) {
	size := (max(n, 1) + unix.Getpagesize() - 1) &^ (unix.Getpagesize() - 1)
	m, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes for a secret: %w", size, err)
	}
	if err := unix.Mlock(m); err != nil {
		_ = unix.Munmap(m) // the lock is the error to tell
		return nil, fmt.Errorf("lock %d bytes for a secret: %w; raise LimitMEMLOCK (ulimit -l)", size, err)
	}
	// Both are there since Linux 4.14.
	if err := errors.Join(unix.Madvise(m, unix.MADV_DONTDUMP), unix.Madvise(m, unix.MADV_WIPEONFORK)); err != nil {
		_ = unix.Munmap(m) // likewise
		return nil, fmt.Errorf("keep a secret out of dumps: %w", err)
	}
	return &Buffer{mapped: m, n: n}, nil
}

// Move copies a secret into such memory and wipes where it was.
func Move(secret []byte) (*Buffer, error) {
	defer clear(secret)
	b, err := New(len(secret))
	if err != nil {
		return nil, err
	}
	copy(b.mapped, secret)
	return b, nil
}

// Bytes is the memory.
func (b *Buffer) Bytes() []byte { return b.mapped[:b.n:b.n] }

// Free wipes and returns the memory. A second call does nothing.
func (b *Buffer) Free() {
	if b == nil || b.mapped == nil {
		return
	}
	clear(b.mapped)
	_ = unix.Munmap(b.mapped) // it was mapped by New
	b.mapped = nil
}

// HoldProcess makes the process undumpable: no core file, and no ptrace or
// /proc/pid/mem but for root. With lockAll every page, also of the Go heap, stays
// out of swap; that needs CAP_IPC_LOCK or no limit of locked memory.
func HoldProcess(lockAll bool) error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("make the process undumpable: %w", err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("forbid core files: %w", err)
	}
	if !lockAll {
		return nil
	}
	// Under a finite limit the lock may succeed, and a later allocation of the
	// Go runtime then fail, which ends the program.
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit); err != nil {
		return fmt.Errorf("lock the process's memory: %w", err)
	}
	if unix.Geteuid() != 0 && limit.Cur != unix.RLIM_INFINITY {
		return fmt.Errorf("lock the process's memory: the limit is %d bytes; raise LimitMEMLOCK to infinity", limit.Cur)
	}
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		return fmt.Errorf("lock the process's memory: %w; grant CAP_IPC_LOCK, or raise LimitMEMLOCK to infinity", err)
	}
	return nil
}

// SPDX-License-Identifier: Apache-2.0

package shm

import (
	"sync"
	"syscall"
	"time"
	"unsafe"
)

// The process has the doorbell and interrupt eventfds open too, the very same
// open files: it can fill their counters and clear O_NONBLOCK. A plain read or
// write of ours could then block, and with it a whole shard.

// writeLimit is how long raising an interrupt may take before it is looked at.
const writeLimit = 20 * time.Millisecond

// interrupt is the eventfd of one channel.
type interrupt struct {
	mu      sync.Mutex // one writer at a time; also held to replace or close fd
	fd      int        // -1: not open
	guard   *time.Timer
	gmu     sync.Mutex // guards writing and blocked
	writing int        // what a write is under way on, else -1
	blocked bool
}

func newInterrupt(fd int) *interrupt {
	i := &interrupt{fd: fd, writing: -1}
	i.guard = time.AfterFunc(time.Hour, i.unblock)
	i.guard.Stop()
	return i
}

var one = [8]byte{1}

// raise adds to the counter. A full one (EAGAIN) means that a wake-up is
// pending.
func (i *interrupt) raise() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.fd < 0 {
		return
	}
	setNonblock(i.fd)
	i.begin(i.fd)
	i.guard.Reset(writeLimit)
	_, _ = syscall.Write(i.fd, one[:])
	i.guard.Stop()
	if i.begin(-1) {
		_ = syscall.Close(i.fd) // whoever blocks its interrupt gets no more
		i.fd = -1
	}
}

func (i *interrupt) begin(fd int) (blocked bool) {
	i.gmu.Lock()
	defer i.gmu.Unlock()
	i.writing = fd
	return i.blocked
}

// unblock lets a write that blocks go on, by emptying the counter.
func (i *interrupt) unblock() {
	i.gmu.Lock()
	defer i.gmu.Unlock()
	if i.writing < 0 || writable(i.writing) {
		return // done by now, or only slow
	}
	i.blocked = true
	readNow(i.writing)
	i.guard.Reset(writeLimit) // the process may have been faster
}

func (i *interrupt) close() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.fd >= 0 {
		_ = syscall.Close(i.fd)
		i.fd = -1
	}
}

// readNow takes an eventfd's count and never blocks, whatever the file's flags.
func readNow(fd int) {
	const nowait = 8 // RWF_NOWAIT
	var b [8]byte
	iov := syscall.Iovec{Base: &b[0]}
	iov.SetLen(len(b))
	// Offset -1: eventfds have none.
	_, _, errno := syscall.Syscall6(sysPreadv2, uintptr(fd), uintptr(unsafe.Pointer(&iov)), 1, ^uintptr(0), ^uintptr(0), nowait)
	if errno == syscall.ENOSYS || errno == syscall.EOPNOTSUPP { // before Linux 5.8, or emulated
		setNonblock(fd)
		_, _ = syscall.Read(fd, b[:]) // EAGAIN: nothing has come since
	}
}

// writable tells whether an eventfd takes another count.
func writable(fd int) bool {
	const pollOut = 4
	p := struct {
		fd              int32
		events, revents int16
	}{fd: int32(fd), events: pollOut}
	var now syscall.Timespec
	n, _, errno := syscall.Syscall6(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(&p)), 1, uintptr(unsafe.Pointer(&now)), 0, 0, 0)
	return errno != 0 || n == 1
}

func setNonblock(fd int) {
	_, _, _ = syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_SETFL, syscall.O_RDWR|syscall.O_NONBLOCK)
}

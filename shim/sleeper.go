// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"fmt"
	"os"
	"syscall"
)

// sleeper lets a goroutine sleep on an eventfd in the runtime's network poller.
// The poller gets an epoll instance around the eventfd, not the eventfd: it
// would watch that for writing, too, and wake for each count that is taken. So
// the count is never taken; every addition is an edge.
type sleeper struct {
	file  *os.File
	raw   syscall.RawConn
	woken func(fd uintptr) bool
}

func newSleeper(eventfd int) (*sleeper, error) {
	fd, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create an epoll instance: %w", err)
	}
	const edge = 1 << 31 // EPOLLET; package syscall has it negative
	ev := syscall.EpollEvent{Events: syscall.EPOLLIN | edge}
	if err = syscall.EpollCtl(fd, syscall.EPOLL_CTL_ADD, eventfd, &ev); err == nil {
		err = syscall.SetNonblock(fd, true)
	}
	if err != nil {
		_ = syscall.Close(fd)
		return nil, fmt.Errorf("watch an interrupt: %w", err)
	}
	s := &sleeper{file: os.NewFile(uintptr(fd), "pno-interrupt")}
	if s.raw, err = s.file.SyscallConn(); err != nil {
		_ = s.file.Close()
		return nil, fmt.Errorf("watch an interrupt: %w", err)
	}
	var stale [1]syscall.EpollEvent
	s.woken = func(fd uintptr) bool {
		n, err := syscall.EpollWait(int(fd), stale[:], 0)
		return n > 0 || err != nil && err != syscall.EINTR
	}
	return s, nil
}

// sleep returns after the eventfd was added to, at once if that has happened
// since the last sleep.
func (s *sleeper) sleep() error { return s.raw.Read(s.woken) }

// SPDX-License-Identifier: Apache-2.0

package host

import (
	"fmt"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// process waits for the end of one process through its pidfd.
type process struct {
	file *os.File
	done atomic.Bool // told, or not wanted any more
}

// watchPID opens pid and watches it; gone is called once, from another
// goroutine, unless close comes first.
func watchPID(pid int, gone func()) (*process, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	return watchFD(fd, gone)
}

// watchFD takes over a pidfd.
func watchFD(fd int, gone func()) (*process, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("watch process: %w", err)
	}
	p := &process{file: os.NewFile(uintptr(fd), "pidfd")}
	raw, err := p.file.SyscallConn()
	if err != nil {
		p.file.Close()
		return nil, fmt.Errorf("watch process: %w", err)
	}
	go func() {
		err := raw.Read(func(fd uintptr) bool { return exited(int(fd)) })
		if err == nil && p.done.CompareAndSwap(false, true) {
			gone()
		}
	}()
	return p, nil
}

// exited tells whether the process of a pidfd is gone.
func exited(fd int) bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	return n > 0 && err == nil
}

// close ends the watch. It may be called from gone itself, and twice.
func (p *process) close() {
	p.done.Store(true)
	_ = p.file.Close()
}

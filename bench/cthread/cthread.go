// SPDX-License-Identifier: Apache-2.0

// Package cthread has a goroutine that is bound to a thread sleep, read and write
// as a thread of a C program does: Go's scheduler is not told, so that none of its
// threads is woken for it. It is what the OpenSSL provider and an event loop in C
// look like to a benchmark.
//
// The goroutine keeps its processor of the scheduler while it sleeps. A connection
// is used by one goroutine.
package cthread

import (
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

func call(trap, a, b, c, d uintptr) (int, error) {
	for {
		n, _, errno := syscall.RawSyscall6(trap, a, b, c, d, 0, 0)
		switch errno {
		case 0:
			return int(n), nil
		case syscall.EINTR: // Go interrupts threads at times
		default:
			return 0, errno
		}
	}
}

func transfer(trap uintptr, fd int, b []byte) (int, error) {
	return call(trap, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), 0)
}

// Read is read(2).
func Read(fd int, b []byte) (int, error) { return transfer(unix.SYS_READ, fd, b) }

// Write is write(2).
func Write(fd int, b []byte) (int, error) { return transfer(unix.SYS_WRITE, fd, b) }

// Sleep sleeps until then.
func Sleep(until time.Time) {
	for left := time.Until(until); left > 0; left = time.Until(until) {
		ts := unix.NsecToTimespec(left.Nanoseconds())
		_, _, _ = syscall.RawSyscall(syscall.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&ts)), 0, 0) // the loop looks
	}
}

// Conn reads a TCP connection as an event loop does: it sleeps in epoll_wait when
// there is nothing.
type Conn struct{ fd, epoll int }

// NewConn takes a connection over.
func NewConn(c net.Conn) (*Conn, error) {
	t, ok := c.(*net.TCPConn)
	if !ok {
		return nil, fmt.Errorf("take the descriptor of a %T", c)
	}
	defer t.Close() // the descriptor below is another
	f, err := t.File()
	if err != nil {
		return nil, fmt.Errorf("take the descriptor of a connection: %w", err)
	}
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("take the descriptor of a connection: %w", err)
	}
	e := &Conn{fd: fd, epoll: -1}
	e.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err == nil {
		err = errors.Join(unix.SetNonblock(fd, true), unix.EpollCtl(e.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN}))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("watch a connection: %w", err), e.Close())
	}
	return e, nil
}

// Read implements io.Reader.
func (e *Conn) Read(b []byte) (int, error) {
	for {
		n, err := Read(e.fd, b)
		switch {
		case errors.Is(err, unix.EAGAIN):
			var ev unix.EpollEvent
			if _, err := call(unix.SYS_EPOLL_PWAIT, uintptr(e.epoll), uintptr(unsafe.Pointer(&ev)), 1, ^uintptr(0)); err != nil {
				return 0, err
			}
		case err == nil && n == 0:
			return 0, io.EOF
		default:
			return n, err
		}
	}
}

// Write implements io.Writer.
func (e *Conn) Write(b []byte) (int, error) { return Write(e.fd, b) }

// Close implements io.Closer.
func (e *Conn) Close() error {
	err := unix.Close(e.fd)
	if e.epoll >= 0 {
		err = errors.Join(err, unix.Close(e.epoll))
	}
	return err
}

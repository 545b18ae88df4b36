// SPDX-License-Identifier: Apache-2.0

// Package rawconn has connections whose reads and writes the Go scheduler does not
// take for calls that may block, which on a non-blocking socket they are not.
//
// Each such call of package net tells the scheduler that a thread is in the kernel.
// Under load that costs little. In a process that was idle the first one wakes the
// runtime's monitor, which then looks every 20 µs whether the call has come back,
// for as long as the process is at work: more wake-ups than the message itself has.
//
// A connection, over TCP or of a Unix socket with packets, is used like any other
// net.Conn, but by one reader and one writer at a time.
package rawconn

import (
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"unsafe"
)

// conn is a connection; what is not here does package net.
type conn struct {
	net.Conn
	raw      syscall.RawConn
	in, out  call
	readable func(fd uintptr) bool // made once, for each would be an allocation
	writable func(fd uintptr) bool
}

// call is what a system call is about, and what has come of it.
type call struct {
	trap  uintptr
	buf   []byte
	n     int
	errno syscall.Errno
}

// Wrap takes a connection over. One that has no descriptor is returned as it is.
func Wrap(c net.Conn) (net.Conn, error) {
	file, ok := c.(syscall.Conn)
	if !ok {
		return c, nil
	}
	raw, err := file.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("take over connection to %v: %w", c.RemoteAddr(), err)
	}
	w := &conn{Conn: c, raw: raw, in: call{trap: syscall.SYS_READ}, out: call{trap: syscall.SYS_WRITE}}
	w.readable, w.writable = w.in.try, w.out.try
	return w, nil
}

// try makes the call, and tells whether it has come to an end; otherwise the
// caller waits until the socket is ready.
func (c *call) try(fd uintptr) bool {
	for {
		n, _, errno := syscall.RawSyscall(c.trap, fd, uintptr(unsafe.Pointer(unsafe.SliceData(c.buf))), uintptr(len(c.buf)))
		if errno == syscall.EINTR {
			continue
		}
		c.n, c.errno = int(n), errno
		return errno != syscall.EAGAIN
	}
}

// Read implements net.Conn.
func (c *conn) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	c.in.buf = b
	err := c.raw.Read(c.readable)
	c.in.buf = nil
	switch {
	case err != nil:
		return 0, err
	case c.in.errno != 0:
		return 0, c.failed("read", c.in.errno)
	case c.in.n == 0:
		return 0, io.EOF
	}
	return c.in.n, nil
}

// Write implements net.Conn.
func (c *conn) Write(b []byte) (done int, err error) {
	for done < len(b) {
		c.out.buf = b[done:]
		err := c.raw.Write(c.writable)
		c.out.buf = nil
		switch {
		case err != nil:
			return done, err
		case c.out.errno != 0:
			return done, c.failed("write", c.out.errno)
		}
		done += c.out.n
	}
	return done, nil
}

// failed is the error that package net would have returned.
func (c *conn) failed(op string, errno syscall.Errno) error {
	return &net.OpError{Op: op, Net: c.LocalAddr().Network(), Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: os.NewSyscallError(op, errno)}
}

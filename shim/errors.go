// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
)

// opError dresses an error as package net does. End of file stays bare.
func opError(op, network string, source, addr net.Addr, err error) error {
	switch {
	case err == nil || err == io.EOF:
		return err
	case errors.Is(err, context.Canceled):
		err = errCanceled{}
	case errors.Is(err, context.DeadlineExceeded):
		err = errTimeout{}
	}
	var number syscall.Errno
	if call, ok := calls[op]; ok && errors.As(err, &number) {
		err = os.NewSyscallError(call, number)
	}
	return &net.OpError{Op: op, Net: network, Source: source, Addr: addr, Err: err}
}

// calls names the system call that would have failed.
var calls = map[string]string{
	"dial": "connect", "read": "read", "write": "write", "accept": "accept4", "close": "shutdown", "set": "setsockopt",
}

// errTimeout and errCanceled are a dial's end by its context, as package net
// has them: they match the context's error, and the first is a time-out.
type (
	errTimeout  struct{}
	errCanceled struct{}
)

func (errTimeout) Error() string   { return "i/o timeout" }
func (errTimeout) Timeout() bool   { return true }
func (errTimeout) Temporary() bool { return true }
func (errTimeout) Is(err error) bool {
	return err == context.DeadlineExceeded || err == os.ErrDeadlineExceeded
}

func (errCanceled) Error() string     { return "operation was canceled" }
func (errCanceled) Is(err error) bool { return err == context.Canceled }

// errnoOf turns the errno of a record into an error.
func errnoOf(n uint32) syscall.Errno {
	if n == 0 || n >= 4096 {
		return syscall.ECONNRESET // what the DPU says makes no sense
	}
	return syscall.Errno(n)
}

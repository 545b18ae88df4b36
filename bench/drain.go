// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Drained is what a drain has received.
type Drained struct {
	Requests int     `json:"requests"` // whole answers
	Bytes    int64   `json:"bytes"`    // of their bodies
	Seconds  float64 `json:"seconds"`
}

const (
	drainLimit  = 10 * time.Second // for one answer to go on
	drainAtOnce = 256 << 10        // bytes that are worth waking up for
)

// Drain asks for the same page again and again on conns connections, for d, and
// has the kernel throw the bodies away: the cheapest client there is, so that
// its core receives as much as it can.
func Drain(ctx context.Context, to netip.AddrPort, conns int, d time.Duration) (*Drained, error) {
	var (
		mu   sync.Mutex
		sum  Drained
		errs []error
		all  sync.WaitGroup
	)
	start := time.Now()
	for range conns {
		all.Go(func() {
			n, bytes, err := drainOne(ctx, to, start.Add(d))
			mu.Lock()
			defer mu.Unlock()
			sum.Requests, sum.Bytes = sum.Requests+n, sum.Bytes+bytes
			errs = append(errs, err)
		})
	}
	all.Wait()
	sum.Seconds = time.Since(start).Seconds()
	return &sum, errors.Join(errs...)
}

// drainOne fetches on one connection until a time. Its calls block: the thread
// sleeps in the kernel until much has come.
func drainOne(ctx context.Context, to netip.AddrPort, until time.Time) (n int, bytes int64, err error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, 0, fmt.Errorf("make a socket: %w", err)
	}
	defer unix.Close(fd)
	limit := unix.NsecToTimeval(drainLimit.Nanoseconds())
	if err := errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit),
		unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}),
	); err != nil {
		return 0, 0, fmt.Errorf("connect to %v: %w", to, err)
	}
	a, err := firstAnswer(fd)
	if err != nil {
		return 0, 0, err
	}
	for n = 1; time.Now().Before(until) && ctx.Err() == nil; n++ {
		if err := a.again(fd); err != nil {
			return n, int64(n) * int64(a.body), err
		}
	}
	return n, int64(n) * int64(a.body), nil
}

// answer is how long each is: the same page has the same header, but for digits.
type answer struct {
	header, body int
	buf          []byte
}

const ask = "GET / HTTP/1.1\r\nHost: x\r\n\r\n"

// firstAnswer reads one by its header.
func firstAnswer(fd int) (*answer, error) {
	if _, err := unix.Write(fd, []byte(ask)); err != nil {
		return nil, fmt.Errorf("ask for a page: %w", err)
	}
	var head []byte
	var one [1]byte
	for !bytes.HasSuffix(head, []byte("\r\n\r\n")) {
		if len(head) > 4096 {
			return nil, fmt.Errorf("the header of a page does not end: %q", head)
		}
		if _, err := receive(fd, one[:], 0); err != nil {
			return nil, fmt.Errorf("read the header of a page, %q so far: %w", head, err)
		}
		head = append(head, one[0])
	}
	a := &answer{header: len(head)}
	_, length, ok := bytes.Cut(head, []byte("Content-Length: "))
	if !ok {
		return nil, fmt.Errorf("the header of a page does not say how long it is: %q", head)
	}
	if _, err := fmt.Sscan(string(length), &a.body); err != nil || a.body < 1 {
		return nil, fmt.Errorf("the header of a page does not say how long it is: %q", head)
	}
	a.buf = make([]byte, max(a.header, a.body))
	return a, a.drop(fd)
}

// again asks for the page, and looks at the beginning of its header.
func (a *answer) again(fd int) error {
	if _, err := unix.Write(fd, []byte(ask)); err != nil {
		return fmt.Errorf("ask for a page: %w", err)
	}
	head := a.buf[:a.header]
	n, err := receive(fd, head, unix.MSG_WAITALL)
	if err != nil {
		return fmt.Errorf("read the header of a page: %w", err)
	}
	if n != len(head) || !bytes.HasPrefix(head, []byte("HTTP/1.1 200 ")) || !bytes.HasSuffix(head, []byte("\r\n\r\n")) {
		return fmt.Errorf("the header of a page is not as long as the first, or no longer says that all is well: %q", head[:n])
	}
	return a.drop(fd)
}

// drop has the kernel throw a body away. It wakes the thread for what is worth
// it, but the end of a body must not wait for more.
func (a *answer) drop(fd int) error {
	least := min(drainAtOnce, a.body/4)
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVLOWAT, least); err != nil {
		return fmt.Errorf("ask to be woken seldom: %w", err)
	}
	if err := a.dropSome(fd, a.body-least); err != nil {
		return err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVLOWAT, 1); err != nil {
		return fmt.Errorf("ask to be woken for the rest: %w", err)
	}
	return a.dropSome(fd, least)
}

func (a *answer) dropSome(fd, left int) error {
	for left > 0 {
		n, err := receive(fd, a.buf[:left], unix.MSG_TRUNC|unix.MSG_WAITALL)
		if err != nil {
			return fmt.Errorf("read a page of %d bytes, %d to go: %w", a.body, left, err)
		}
		left -= n
	}
	return nil
}

// receive is recv, which a signal does not end. That nothing more comes is an error.
func receive(fd int, b []byte, flags int) (int, error) {
	for {
		switch n, _, err := unix.Recvfrom(fd, b, flags); {
		case err == unix.EINTR:
		case err == nil && n == 0:
			return 0, io.ErrUnexpectedEOF
		default:
			return max(n, 0), err
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

// Package unixsock makes the Unix sockets that the daemons serve: with their
// mode from the first moment, and in place of one that a killed daemon left,
// but of nothing else. It keeps no state, and any goroutine may call.
package unixsock

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// MaxPath is what fits into sockaddr_un with its closing zero.
const MaxPath = 107

// ErrInUse is wrapped when another process serves on the socket.
var ErrInUse = errors.New("another process serves there")

// Listen opens the socket at path; network is "unix" or "unixpacket". Its errors
// name the path and what to do.
func Listen(ctx context.Context, network, path string, mode os.FileMode) (*net.UnixListener, error) {
	if path == "" || len(path) > MaxPath {
		return nil, fmt.Errorf("%q: the path of a socket has 1 to %d bytes", path, MaxPath)
	}
	if err := clearStale(network, path); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	// The file takes its mode from the socket's inode less the umask, so that it
	// never exists with too wide a one; what the umask took is given below.
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var failed error
		if err := c.Control(func(fd uintptr) { failed = unix.Fchmod(int(fd), uint32(mode.Perm())) }); err != nil {
			return err
		}
		return failed
	}}
	l, err := lc.Listen(ctx, network, path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, fmt.Errorf("%s: there is no folder %s; make it, or name another path", path, filepath.Dir(path))
	case errors.Is(err, os.ErrPermission):
		return nil, fmt.Errorf("%s: no permission to write to %s: %w", path, filepath.Dir(path), err)
	case err != nil:
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if err := os.Chmod(path, mode); err != nil {
		_ = l.Close() // the mode is the error to tell
		return nil, err
	}
	return l.(*net.UnixListener), nil
}

// clearStale removes a socket file that refuses connections.
func clearStale(network, path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != os.ModeSocket:
		return errors.New("there is a file that is not a socket; remove it, or name another path")
	}
	conn, err := net.DialTimeout(network, path, time.Second)
	switch {
	case err == nil:
		_ = conn.Close() // it was only a question
		return fmt.Errorf("%w; stop it, or name another path", ErrInUse)
	case errors.Is(err, syscall.EPROTOTYPE):
		return fmt.Errorf("%w, of another kind; stop it, or name another path", ErrInUse)
	case errors.Is(err, syscall.ECONNREFUSED):
		return os.Remove(path)
	}
	return err
}

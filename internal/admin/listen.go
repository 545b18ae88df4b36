// SPDX-License-Identifier: Apache-2.0

package admin

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

// socketMode lets the owner and the group of the daemon in, nobody else: the
// file's permissions are the API's access control.
const socketMode = 0o660

// maxSocketPath is what fits into sockaddr_un with its closing zero.
const maxSocketPath = 107

// ErrInUse is wrapped when another process serves on the socket.
var ErrInUse = errors.New("another process serves there")

// listenUnix opens the socket at path. A socket file that nobody serves, left
// behind by a daemon that was killed, is replaced; anything else at that path
// is left alone.
func listenUnix(ctx context.Context, path string) (net.Listener, error) {
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("admin socket %s: the path has %d bytes, a socket's may have %d", path, len(path), maxSocketPath)
	}
	if err := clearStale(path); err != nil {
		return nil, fmt.Errorf("admin socket %s: %w", path, err)
	}
	// The file takes its mode from the socket's inode less the umask, so that it
	// never exists with too wide a one; what the umask took is given below.
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var mode error
		if err := c.Control(func(fd uintptr) { mode = unix.Fchmod(int(fd), socketMode) }); err != nil {
			return err
		}
		return mode
	}}
	lis, err := lc.Listen(ctx, "unix", path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, fmt.Errorf("admin socket %s: there is no folder %s; make it, or name another path", path, filepath.Dir(path))
	case errors.Is(err, os.ErrPermission):
		return nil, fmt.Errorf("admin socket %s: no permission to write to %s: %w", path, filepath.Dir(path), err)
	case err != nil:
		return nil, fmt.Errorf("admin socket %s: %w", path, err)
	}
	if err := os.Chmod(path, socketMode); err != nil {
		_ = lis.Close() // the mode is the error to tell
		return nil, fmt.Errorf("admin socket: %w", err)
	}
	return lis, nil
}

// clearStale removes a socket file that refuses connections.
func clearStale(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != os.ModeSocket:
		return fmt.Errorf("there is a file that is not a socket; remove it, or name another path")
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	switch {
	case err == nil:
		_ = conn.Close() // it was only a question
		return fmt.Errorf("%w; stop it, or name another path", ErrInUse)
	case errors.Is(err, syscall.ECONNREFUSED):
		return os.Remove(path)
	}
	return err
}

// SPDX-License-Identifier: Apache-2.0

package topology

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const (
	dirPattern = "pno-sim-"
	lockName   = "lock"
	// The longest name below the directory, and what a sockaddr_un takes.
	longestName = "/admin-host.sock"
	maxSockPath = 107
)

// workdir is the private directory of a simulation. Its lock file is held for
// as long as the process lives, so that the directory of one that was killed
// can be told from one in use, and removed.
type workdir struct {
	path string
	lock *os.File
}

func newWorkdir() (*workdir, error) {
	base := os.TempDir()
	if len(base)+len("/"+dirPattern)+20+len(longestName) > maxSockPath {
		base = "/tmp" // a socket's path would be too long
	}
	sweep(base)
	path, err := os.MkdirTemp(base, dirPattern)
	if err != nil {
		return nil, fmt.Errorf("create a directory for the simulation: %w", err)
	}
	w := &workdir{path: path}
	// Locked under another name first: sweep must not meet it unlocked.
	w.lock, err = os.OpenFile(w.file(lockName+".new"), os.O_CREATE|os.O_RDWR, 0o600)
	if err == nil {
		err = unix.Flock(int(w.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err == nil {
		err = os.Rename(w.lock.Name(), w.file(lockName))
	}
	// A program started by root may drop its privileges and must reach the
	// sockets then. The directory's name is random and cannot be listed.
	if err == nil && os.Geteuid() == 0 {
		err = os.Chmod(path, 0o711)
	}
	if err != nil {
		w.remove()
		return nil, fmt.Errorf("prepare %s: %w", path, err)
	}
	return w, nil
}

func (w *workdir) file(name string) string { return filepath.Join(w.path, name) }

func (w *workdir) remove() {
	_ = os.RemoveAll(w.path)
	if w.lock != nil {
		_ = w.lock.Close()
	}
}

// sweep removes what killed simulations of this user left behind.
func sweep(base string) {
	dirs, err := filepath.Glob(filepath.Join(base, dirPattern+"*"))
	if err != nil {
		return
	}
	for _, dir := range dirs {
		var st unix.Stat_t
		if unix.Lstat(dir, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Geteuid() {
			continue
		}
		lock, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		if err != nil {
			continue // one that is just being made
		}
		if unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			_ = os.RemoveAll(dir)
		}
		_ = lock.Close()
	}
}

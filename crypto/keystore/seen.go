// SPDX-License-Identifier: Apache-2.0

package keystore

import (
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// seen is what a store has read, so that a worker which looks every second reads
// what has changed only.
type seen struct {
	mu    sync.Mutex
	files map[string]seenFile // by name
}

// seenFile is a key file as it was. The change time is the kernel's: no program
// sets it.
type seenFile struct {
	inode, size int64
	changed     time.Time
	entry       *Entry
}

// look is read, unless the file is the one that was read before. It notes in now
// what is there. The caller owns the result, and holds the lock of seen.
func (s *Store) look(name string, now map[string]seenFile) (*Entry, error) {
	path := filepath.Join(s.dir, name)
	is, same := stampOf(path)
	if was := s.seen.files[name]; same && was.entry != nil && was.inode == is.inode && was.size == is.size && was.changed.Equal(is.changed) {
		now[name] = was
		e := *was.entry
		return &e, nil
	}
	e, err := s.read(path)
	if err == nil && same {
		kept := *e
		is.entry = &kept
		now[name] = is
	}
	return e, err
}

// stampOf tells a file from others and from itself at other times; false: it
// cannot, or the file has changed so short a time ago that it may do so again
// without being told from this one.
func stampOf(path string) (seenFile, bool) {
	info, err := os.Stat(path)
	if err != nil {
		return seenFile{}, false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return seenFile{}, false
	}
	changed := time.Unix(st.Ctim.Unix())
	return seenFile{inode: int64(st.Ino), size: info.Size(), changed: changed}, time.Since(changed) > settled
}

// settled is longer than a tick of the kernel's coarse clock.
const settled = 100 * time.Millisecond

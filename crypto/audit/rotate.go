// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// A new file is written beside the log, with the line that says where the chain
// comes from, before the former gets out of its way: a full disk leaves the
// former file in use, and a crash in between is made good by the next start.

const (
	nextSuffix = ".next"
	stampForm  = "20060102T150405.000000000"
)

func (l *Log) rotate() error {
	seq, head := l.seq, l.head
	next, size, err := l.beginNext()
	if err == nil {
		err = l.swap()
	}
	if err != nil {
		l.seq, l.head = seq, head
		if next != nil {
			next.Close()
		}
		return fmt.Errorf("rotate audit log: %w", err)
	}
	err = l.file.Close() // every line of it is synced
	l.file, l.size = next, size
	return errors.Join(err, l.prune())
}

// missing notices that somebody has moved the log away, or put another file in
// its place, and goes on in a new one: what is written to a file without a name
// is lost when the program ends.
func (l *Log) missing() error {
	mine, errMine := l.file.Stat()
	now, err := os.Stat(l.cfg.Path)
	switch {
	case errMine != nil:
		return fmt.Errorf("look for audit log: %w", errMine)
	case err == nil && os.SameFile(now, mine):
		return nil
	case err == nil && now.Size() > 0:
		return fmt.Errorf("write audit log: %s is another file than the one that was opened; move it away", l.cfg.Path)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("look for audit log: %w", err)
	}
	f, err := os.OpenFile(l.cfg.Path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("begin audit log anew: %w", err)
	}
	err = l.file.Close() // every line of it is synced
	l.file, l.size = f, 0
	if l.cfg.Log != nil {
		l.cfg.Log.Warn("the audit file was moved away; a new one goes on with its chain", "path", l.cfg.Path)
	}
	return err
}

func (l *Log) beginNext() (*os.File, int64, error) {
	f, err := os.OpenFile(l.cfg.Path+nextSuffix, os.O_RDWR|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return nil, 0, err
	}
	l.begin(0)
	n, err := f.Write(l.buf)
	l.buf = l.buf[:0]
	if err = errors.Join(err, f.Sync()); err != nil {
		return nil, 0, errors.Join(err, f.Close(), os.Remove(f.Name()))
	}
	return f, int64(n), nil
}

func (l *Log) swap() error {
	old := l.cfg.Path + "." + time.Now().UTC().Format(stampForm)
	if err := os.Rename(l.cfg.Path, old); err != nil {
		return err
	}
	if err := os.Rename(l.cfg.Path+nextSuffix, l.cfg.Path); err != nil {
		return errors.Join(err, os.Rename(old, l.cfg.Path))
	}
	return nil
}

// finishRotation makes good a crash between the two renames, or before them.
func (l *Log) finishRotation() error {
	next := l.cfg.Path + nextSuffix
	_, err := os.Lstat(l.cfg.Path)
	switch {
	case err == nil:
		err = os.Remove(next)
	case errors.Is(err, fs.ErrNotExist):
		err = os.Rename(next, l.cfg.Path)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// former are the rotated files, the oldest first.
func (l *Log) former() ([]string, error) {
	all, err := os.ReadDir(filepath.Dir(l.cfg.Path))
	if err != nil {
		return nil, err
	}
	var out []string
	for _, f := range all {
		stamp, ok := strings.CutPrefix(f.Name(), filepath.Base(l.cfg.Path)+".")
		if _, err := time.Parse(stampForm, stamp); ok && err == nil {
			out = append(out, filepath.Join(filepath.Dir(l.cfg.Path), f.Name()))
		}
	}
	slices.Sort(out)
	return out, nil
}

// prune deletes former files beyond the number to keep. The line is written
// first: a file that is gone without one was taken by somebody else.
func (l *Log) prune() error {
	if l.cfg.Keep == 0 {
		return nil
	}
	files, err := l.former()
	if err != nil {
		return fmt.Errorf("prune audit log: %w", err)
	}
	for len(files) > l.cfg.Keep {
		seq, head, size := l.seq, l.head, l.size
		l.deleted(filepath.Base(files[0]))
		if err := l.flush(); err != nil {
			l.seq, l.head, l.size, l.torn = seq, head, size, true
			return errors.Join(err, l.cut())
		}
		if err := os.Remove(files[0]); err != nil {
			return fmt.Errorf("prune audit log: %w", err)
		}
		if l.cfg.Log != nil {
			l.cfg.Log.Warn("audit file deleted: more than audit.keep", "file", files[0], "keep", l.cfg.Keep)
		}
		files = files[1:]
	}
	return nil
}

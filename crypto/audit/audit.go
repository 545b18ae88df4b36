// SPDX-License-Identifier: Apache-2.0

// Package audit writes what was done with private keys: one line of JSON an
// operation, each with a hash over itself and the line before, so that nothing
// can be changed, taken out or put in later without being seen. Lines are
// written in batches; when they come faster than the disk takes them, they are
// lost, and how many is a line of its own. Nothing ever waits for the log.
//
// A Log owns its file and one goroutine. Add may be called by any goroutine,
// Close once, after the last Add.
package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"log/slog"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"pno/crypto/signing"
)

// Record is one operation, or a handshake that failed (Key and Scheme zero).
type Record struct {
	Time   time.Time
	Client string // identity of the certificate, or an address when there is none
	Key    signing.KeyID
	Scheme signing.Scheme
	Input  signing.Input
	Status signing.Status
	Micros uint32 // from arrival to completion
	More   uint64 // refusals like this one that have no record of their own
}

// Config says where and how much.
type Config struct {
	Path string
	// MaxSize starts a new file beyond that many bytes; the former is kept under
	// its name with the time appended. 0: 256 MiB.
	MaxSize int64
	// Keep is how many former files stay; the oldest are deleted, each told in the
	// log of the program and by a line of the chain. 0: all of them.
	Keep int
	// Buffer is how many records may wait; 0: 65536.
	Buffer int
	// Interval between writes; 0: 100 ms.
	Interval time.Duration
	Log      *slog.Logger
}

// Log is an open audit log.
type Log struct {
	cfg  Config
	lost atomic.Uint64 // since the start, for metrics

	mu      sync.Mutex
	waiting []Record
	dropped uint64 // not yet told in the file

	lock *os.File // held as long as the log is open

	// Of the writer alone.
	file   *os.File
	size   int64
	seq    uint64
	head   [sha256.Size]byte
	behind bool // the last write failed
	torn   bool // the file may be longer than size
	buf    []byte
	begun  int // where the line that is being written begins in buf
	hash   hash.Hash

	stop chan struct{}
	done chan struct{}
}

// Open continues a log, or begins one.
func Open(cfg Config) (*Log, error) {
	if cfg.MaxSize == 0 {
		cfg.MaxSize = 256 << 20
	}
	if cfg.Buffer == 0 {
		cfg.Buffer = 65536
	}
	if cfg.Interval == 0 {
		cfg.Interval = 100 * time.Millisecond
	}
	l := &Log{cfg: cfg, hash: sha256.New(), stop: make(chan struct{}), done: make(chan struct{})}
	if err := l.open(); err != nil {
		return nil, fmt.Errorf("open audit log: %w", err)
	}
	go l.run()
	return l, nil
}

// hold keeps every other program from the log: two would tear its chain, and take
// a rotation that goes on for one that was interrupted.
func (l *Log) hold() error {
	f, err := os.OpenFile(l.cfg.Path+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err == nil {
		l.lock = f
		return nil
	}
	f.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("%s: another program writes it", l.cfg.Path)
	}
	return fmt.Errorf("lock %s: %w", f.Name(), err)
}

func (l *Log) open() error {
	if err := l.hold(); err != nil {
		return err
	}
	err := l.take()
	if err != nil {
		l.lock.Close()
	}
	return err
}

// take goes on where the log ends.
func (l *Log) take() error {
	if err := l.finishRotation(); err != nil {
		return err
	}
	f, err := os.OpenFile(l.cfg.Path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	torn, err := l.resume(f)
	if err != nil {
		f.Close()
		return err
	}
	l.file = f
	if torn > 0 || l.size == 0 {
		l.begin(torn)
		return l.flush()
	}
	return nil
}

// resume finds the end of the chain in a file that is there already. What a
// crash left of a line is cut off, if the file is an audit log: any other that
// somebody named by mistake is left as it is.
func (l *Log) resume(f *os.File) (torn int64, err error) {
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil || end == 0 {
		return 0, err
	}
	tail := make([]byte, min(end, 4*maxLine))
	if _, err := f.ReadAt(tail, end-int64(len(tail))); err != nil {
		return 0, err
	}
	whole := bytes.LastIndexByte(tail, '\n') + 1
	if whole > 0 {
		line := tail[:whole-1]
		l.seq, l.head, err = lastOf(line[bytes.LastIndexByte(line, '\n')+1:])
	} else if int64(len(tail)) < end || !bytes.HasPrefix(tail, lineStart[:min(len(tail), len(lineStart))]) {
		err = errNoRecord
	}
	if err != nil {
		return 0, fmt.Errorf("%s does not end in an audit record; move it away: %w", f.Name(), err)
	}
	torn = int64(len(tail) - whole)
	l.size = end - torn
	if torn > 0 {
		err = f.Truncate(l.size)
	}
	return torn, err
}

// Add queues a record, or counts it and those that it stands for as lost.
func (l *Log) Add(r Record) {
	l.mu.Lock()
	if len(l.waiting) < l.cfg.Buffer {
		l.waiting = append(l.waiting, r)
	} else {
		l.dropped += 1 + r.More
		l.lost.Add(1 + r.More)
	}
	l.mu.Unlock()
}

// Lost is how many records were lost since the start.
func (l *Log) Lost() uint64 { return l.lost.Load() }

// Close writes what waits.
func (l *Log) Close() error {
	close(l.stop)
	<-l.done
	if err := errors.Join(l.drain(nil), l.file.Sync(), l.file.Close(), l.lock.Close()); err != nil {
		return fmt.Errorf("close audit log: %w", err)
	}
	return nil
}

func (l *Log) run() {
	defer close(l.done)
	tick := time.NewTicker(l.cfg.Interval)
	defer tick.Stop()
	var spare []Record
	for {
		select {
		case <-l.stop:
			return
		case <-tick.C:
		}
		l.mu.Lock()
		batch := l.waiting
		l.waiting = spare[:0]
		l.mu.Unlock()
		err := l.drain(batch)
		if err != nil && !l.behind && l.cfg.Log != nil {
			l.cfg.Log.Error("audit records are lost", "error", err)
		}
		l.behind = err != nil
		spare = batch
	}
}

// drain writes a batch, or with none whatever waits, and what was lost.
func (l *Log) drain(batch []Record) error {
	l.mu.Lock()
	if batch == nil {
		batch, l.waiting = l.waiting, nil
	}
	dropped := l.dropped
	l.dropped = 0
	l.mu.Unlock()
	if len(batch) == 0 && dropped == 0 {
		return nil
	}
	if err := l.cut(); err != nil {
		l.giveBack(dropped, batch)
		return err
	}
	if err := l.missing(); err != nil {
		l.giveBack(dropped, batch)
		return err
	}
	seq, head, size := l.seq, l.head, l.size
	if size == 0 {
		l.begin(0)
	}
	for i := range batch {
		l.record(&batch[i])
	}
	if dropped > 0 {
		l.line("lost", dropped)
	}
	if err := l.flush(); err != nil {
		// What is half written is cut off, and told as lost later.
		l.seq, l.head, l.size, l.torn = seq, head, size, true
		l.giveBack(dropped, batch)
		return errors.Join(err, l.cut())
	}
	if l.size > l.cfg.MaxSize {
		return l.rotate()
	}
	return nil
}

// giveBack counts a batch as lost, to be told when the disk takes lines again.
func (l *Log) giveBack(dropped uint64, batch []Record) {
	n := uint64(0)
	for i := range batch {
		n += 1 + batch[i].More
	}
	l.mu.Lock()
	l.dropped += dropped + n
	l.mu.Unlock()
	l.lost.Add(n)
}

// cut takes off what a failed write left behind the last whole line.
func (l *Log) cut() error {
	if !l.torn {
		return nil
	}
	if err := l.file.Truncate(l.size); err != nil {
		return fmt.Errorf("repair audit log: %w", err)
	}
	l.torn = false
	return nil
}

func (l *Log) flush() error {
	n, err := l.file.Write(l.buf)
	full := n == len(l.buf)
	l.buf = l.buf[:0]
	if err != nil || !full {
		return fmt.Errorf("write audit log: %w", err)
	}
	l.size += int64(n)
	return l.file.Sync()
}

// begin says where the chain comes from.
func (l *Log) begin(torn int64) {
	l.start()
	l.buf = append(l.buf, `,"after":"`...)
	l.buf = hex.AppendEncode(l.buf, l.head[:])
	l.buf = append(l.buf, '"')
	if torn > 0 {
		l.buf = append(l.buf, `,"torn":`...)
		l.buf = strconv.AppendInt(l.buf, torn, 10)
	}
	l.end()
}

func (l *Log) line(name string, n uint64) {
	l.start()
	l.buf = append(l.buf, `,"`...)
	l.buf = append(l.buf, name...)
	l.buf = append(l.buf, `":`...)
	l.buf = strconv.AppendUint(l.buf, n, 10)
	l.end()
}

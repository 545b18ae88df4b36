// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"
)

// A line is an object whose last member is the chain: the SHA-256 of the chain
// of the line before and of this line up to there.

const (
	chainMark = `,"chain":"`
	chainEnd  = `"}`
	chainLen  = len(chainMark) + 2*sha256.Size + len(chainEnd)
	maxLine   = 4096
)

// lineStart is how each line begins.
var lineStart = []byte(`{"seq":`)

func (l *Log) start() { l.startAt(time.Now()) }

func (l *Log) startAt(t time.Time) {
	l.seq++
	l.begun = len(l.buf)
	l.buf = append(l.buf, lineStart...)
	l.buf = strconv.AppendUint(l.buf, l.seq, 10)
	l.buf = append(l.buf, `,"time":"`...)
	l.buf = t.UTC().AppendFormat(l.buf, "2006-01-02T15:04:05.000000Z")
	l.buf = append(l.buf, '"')
}

func (l *Log) end() {
	l.hash.Reset()
	l.hash.Write(l.head[:])
	l.hash.Write(l.buf[l.begun:])
	l.hash.Sum(l.head[:0])
	l.buf = append(l.buf, chainMark...)
	l.buf = hex.AppendEncode(l.buf, l.head[:])
	l.buf = append(l.buf, chainEnd+"\n"...)
}

func link(before [sha256.Size]byte, body []byte) [sha256.Size]byte {
	h := sha256.New()
	h.Write(before[:])
	h.Write(body)
	var out [sha256.Size]byte
	h.Sum(out[:0])
	return out
}

func (l *Log) record(r *Record) {
	l.startAt(r.Time)
	l.buf = append(l.buf, `,"client":`...)
	l.buf = appendString(l.buf, r.Client)
	if r.Input != 0 {
		l.buf = append(l.buf, `,"key":"`...)
		l.buf = hex.AppendEncode(l.buf, r.Key[:])
		l.buf = append(l.buf, `","scheme":"`...)
		l.buf = append(l.buf, r.Scheme.String()...)
		l.buf = append(l.buf, `","input":"`...)
		l.buf = append(l.buf, r.Input.String()...)
		l.buf = append(l.buf, '"')
	}
	l.buf = append(l.buf, `,"status":"`...)
	l.buf = append(l.buf, r.Status.String()...)
	l.buf = append(l.buf, `","micros":`...)
	l.buf = strconv.AppendUint(l.buf, uint64(r.Micros), 10)
	if r.More > 0 {
		l.buf = append(l.buf, `,"more":`...)
		l.buf = strconv.AppendUint(l.buf, r.More, 10)
	}
	l.end()
}

// deleted says that a former file had to go.
func (l *Log) deleted(name string) {
	l.start()
	l.buf = append(l.buf, `,"deleted":`...)
	l.buf = appendString(l.buf, name)
	l.end()
}

// appendString quotes what a peer chose; the usual identity needs no escapes.
func appendString(b []byte, s string) []byte {
	s = s[:min(len(s), 512)]
	for i := range len(s) {
		if c := s[i]; c < ' ' || c >= 0x7f || c == '"' || c == '\\' {
			quoted, err := json.Marshal(s)
			if err != nil {
				return append(b, `""`...)
			}
			return append(b, quoted...)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}

var errNoRecord = errors.New("not an audit record")

// split takes the chain off a line.
func split(line []byte) (body []byte, head [sha256.Size]byte, err error) {
	at := len(line) - chainLen
	if at < 1 || !bytes.HasPrefix(line[at:], []byte(chainMark)) || !bytes.HasSuffix(line, []byte(chainEnd)) {
		return nil, head, errNoRecord
	}
	if _, err := hex.Decode(head[:], line[at+len(chainMark):len(line)-len(chainEnd)]); err != nil {
		return nil, head, errNoRecord
	}
	return line[:at], head, nil
}

// entry is what verification reads of a line.
type entry struct {
	Seq    uint64 `json:"seq"`
	After  string `json:"after"`
	Lost   uint64 `json:"lost"`
	Torn   uint64 `json:"torn"`
	Status string `json:"status"`
	More   uint64 `json:"more"`
}

func decode(body []byte) (entry, error) {
	var e entry
	if err := json.Unmarshal(append(bytes.Clone(body), '}'), &e); err != nil || e.Seq == 0 {
		return e, errNoRecord
	}
	return e, nil
}

// lastOf is where a chain that ends with this line goes on.
func lastOf(line []byte) (seq uint64, head [sha256.Size]byte, err error) {
	body, head, err := split(line)
	if err != nil {
		return 0, head, err
	}
	e, err := decode(body)
	return e.Seq, head, err
}

// Summary is what Verify found.
type Summary struct {
	Records  uint64            `json:"records"` // operations and failed handshakes
	Lost     uint64            `json:"lost"`
	Torn     uint64            `json:"torn"` // bytes cut off after crashes
	First    uint64            `json:"first"`
	Last     uint64            `json:"last"` // sequence numbers
	Statuses map[string]uint64 `json:"statuses"`
	Head     string            `json:"head"` // chain of the last line: keep it elsewhere
}

// Verifier follows the chain through files, the oldest first.
type Verifier struct {
	Summary
	head [sha256.Size]byte
	seen bool
}

// Verify reads one file. An error names the first line that does not fit.
func (v *Verifier) Verify(name string, r io.Reader) error {
	if v.Statuses == nil {
		v.Statuses = map[string]uint64{}
	}
	sc := bufio.NewScanner(r)
	sc.Buffer(make([]byte, 0, maxLine), 2*maxLine)
	n := 0
	for sc.Scan() {
		n++
		if err := v.line(sc.Bytes()); err != nil {
			return fmt.Errorf("%s:%d: %w", name, n, err)
		}
	}
	if err := sc.Err(); err != nil {
		return fmt.Errorf("%s:%d: %w", name, n+1, err)
	}
	return nil
}

func (v *Verifier) line(line []byte) error {
	body, head, err := split(line)
	if err != nil {
		return err
	}
	e, err := decode(body)
	if err != nil {
		return err
	}
	if !v.seen {
		// The first line of all says what came before it.
		if b, err := hex.DecodeString(e.After); err != nil || copy(v.head[:], b) != sha256.Size {
			return errors.New("the log does not begin here: an older file, or lines, are missing before it")
		}
		v.seen, v.First, v.Last = true, e.Seq, e.Seq-1
	}
	switch {
	case e.Seq != v.Last+1:
		return fmt.Errorf("record %d follows record %d: some are missing", e.Seq, v.Last)
	case link(v.head, body) != head:
		return fmt.Errorf("record %d was changed, or one before it", e.Seq)
	}
	v.head, v.Last, v.Head = head, e.Seq, hex.EncodeToString(head[:])
	v.Lost += e.Lost
	v.Torn += e.Torn
	if e.Status != "" {
		v.Records += 1 + e.More
		v.Statuses[e.Status] += 1 + e.More
	}
	return nil
}

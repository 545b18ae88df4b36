// SPDX-License-Identifier: Apache-2.0

package session

// backlog is what a host sent and the stack has not taken yet, in blocks of
// the table's. A writer that is faster than its peer always has some, so
// neither growing nor giving up its front may copy what is in between.
type backlog struct {
	blocks   []*block
	from, to int // where the first block begins and the last one ends
}

// block holds one record of the host's at least.
type block [32 << 10]byte

// maxSpare is how many free blocks a table keeps: enough for the writers of
// one turn, and for what a dozen spliced connections have on hold, 16 MiB.
const maxSpare = 512

func (b *backlog) len() int {
	if len(b.blocks) == 0 {
		return 0
	}
	return (len(b.blocks)-1)*len(block{}) - b.from + b.to
}

// put appends a copy of p.
func (t *Table) put(b *backlog, p []byte) {
	for len(p) > 0 {
		if len(b.blocks) == 0 || b.to == len(block{}) {
			b.blocks, b.to = append(b.blocks, t.newBlock()), 0
		}
		n := copy(b.blocks[len(b.blocks)-1][b.to:], p)
		b.to += n
		p = p[n:]
	}
}

// take removes the first n bytes.
func (t *Table) take(b *backlog, n int) {
	if n == b.len() {
		t.clear(b)
		return
	}
	b.from += n
	for ; b.from >= len(block{}); b.from -= len(block{}) {
		t.freeBlock(b.blocks[0])
		last := copy(b.blocks, b.blocks[1:])
		b.blocks[last] = nil
		b.blocks = b.blocks[:last]
	}
}

// shift appends the first n bytes of from to b, and removes them there. Blocks
// change hands as they are if b ends with one.
func (t *Table) shift(b, from *backlog, n int) {
	if n == from.len() && b.len() == 0 {
		*b, *from = *from, *b
		return
	}
	if whole := (from.from + n) / len(block{}); b.len() == 0 && whole > 0 && whole < len(from.blocks) {
		b.blocks = append(b.blocks, from.blocks[:whole]...)
		b.from, b.to = from.from, len(block{})
		n -= b.len()
		last := copy(from.blocks, from.blocks[whole:])
		clear(from.blocks[last:])
		from.blocks, from.from = from.blocks[:last], 0
	}
	for n > 0 {
		end := len(block{})
		if len(from.blocks) == 1 {
			end = from.to
		}
		k := min(n, end-from.from)
		t.put(b, from.blocks[0][from.from:from.from+k])
		t.take(from, k)
		n -= k
	}
}

// clear empties b, and leaves an idle connection nothing of it.
func (t *Table) clear(b *backlog) {
	for _, one := range b.blocks {
		t.freeBlock(one)
	}
	*b = backlog{}
}

func (t *Table) newBlock() *block {
	if n := len(t.blocks); n > 0 {
		b := t.blocks[n-1]
		t.blocks[n-1] = nil
		t.blocks = t.blocks[:n-1]
		return b
	}
	return new(block)
}

func (t *Table) freeBlock(b *block) {
	if len(t.blocks) < maxSpare {
		t.blocks = append(t.blocks, b)
	}
}

// source is what an endpoint's Write copies from: a backlog, then a record.
type source struct {
	b     *backlog
	at    int // behind what was read of b
	extra []byte
}

// Len implements tcpip.Payloader.
func (s *source) Len() int { return s.b.len() - s.at + len(s.extra) }

// Read implements tcpip.Payloader; the stack asks for no more than Len.
func (s *source) Read(p []byte) (n int, err error) {
	for n < len(p) && s.at < s.b.len() {
		i, at := (s.b.from+s.at)/len(block{}), (s.b.from+s.at)%len(block{})
		end := len(block{})
		if i == len(s.b.blocks)-1 {
			end = s.b.to
		}
		m := copy(p[n:], s.b.blocks[i][at:end])
		s.at += m
		n += m
	}
	m := copy(p[n:], s.extra)
	s.extra = s.extra[m:]
	return n + m, nil
}

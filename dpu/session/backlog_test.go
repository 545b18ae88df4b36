// SPDX-License-Identifier: Apache-2.0

package session

import (
	"bytes"
	"io"
	"math/rand/v2"
	"testing"
)

// A backlog is a queue of bytes, and what the stack is offered is all of it
// and then the record at hand.
func TestBacklog(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	var table Table
	var b backlog
	var model []byte
	next := byte(0)
	for i := range 300 {
		if rnd.IntN(2) == 0 {
			p := make([]byte, rnd.IntN(3*len(block{})))
			for j := range p {
				p[j] = next
				next++
			}
			table.put(&b, p)
			model = append(model, p...)
		} else {
			n := rnd.IntN(len(model) + 1)
			if rnd.IntN(4) == 0 {
				n = len(model)
			}
			table.take(&b, n)
			model = model[n:]
		}
		if b.len() != len(model) {
			t.Fatalf("step %d: %d bytes, want %d", i, b.len(), len(model))
		}
		extra := []byte("the record at hand")
		s := source{b: &b, extra: extra}
		if s.Len() != len(model)+len(extra) {
			t.Fatalf("step %d: %d bytes on offer, want %d", i, s.Len(), len(model)+len(extra))
		}
		got := make([]byte, s.Len())
		for off := 0; off < len(got); {
			n, err := s.Read(got[off:min(len(got), off+1+rnd.IntN(1<<17))])
			if err != nil || n == 0 {
				t.Fatalf("step %d: read %d, %v", i, n, err)
			}
			off += n
		}
		if s.Len() != 0 || !bytes.Equal(got, append(model[:len(model):len(model)], extra...)) {
			t.Fatalf("step %d: other bytes than were put", i)
		}
	}
	table.clear(&b)
	if b.blocks != nil || b.len() != 0 || len(table.blocks) == 0 || len(table.blocks) > maxSpare {
		t.Errorf("%d blocks left, %d free", len(b.blocks), len(table.blocks))
	}
}

// A writer that its peer holds up costs no allocation.
func TestBacklogAllocates(t *testing.T) {
	var table Table
	var b backlog
	record := make([]byte, 20_000)
	table.put(&b, record)
	turn := func() {
		table.put(&b, record)
		table.in = source{b: &b, extra: record}
		_, _ = io.ReadFull(&table.in, record)
		table.take(&b, 20_000)
	}
	for range 20 {
		turn()
	}
	if n := testing.AllocsPerRun(200, turn); n != 0 {
		t.Errorf("%v allocations a record", n)
	}
}

// What is shifted from one backlog to another is taken from the front of the
// one and comes to the end of the other, and no block is in both.
func TestBacklogShift(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	var table Table
	var b [2]backlog
	var model [2][]byte
	next := byte(0)
	for i := range 2000 {
		k := rnd.IntN(2)
		switch rnd.IntN(4) {
		case 0:
			p := make([]byte, rnd.IntN(3*len(block{})))
			for j := range p {
				p[j] = next
				next = next*5 + 1 + byte(j>>8)
			}
			table.put(&b[k], p)
			model[k] = append(model[k], p...)
		case 1:
			n := rnd.IntN(len(model[k]) + 1)
			if rnd.IntN(2) == 0 {
				n = len(model[k])
			}
			table.take(&b[k], n)
			model[k] = model[k][n:]
		default:
			n := rnd.IntN(len(model[k]) + 1)
			if rnd.IntN(3) == 0 {
				n = len(model[k])
			}
			table.shift(&b[1-k], &b[k], n)
			model[1-k] = append(model[1-k][:len(model[1-k]):len(model[1-k])], model[k][:n]...)
			model[k] = model[k][n:]
		}
		seen := map[*block]bool{}
		for k := range b {
			got := make([]byte, b[k].len())
			if _, err := io.ReadFull(&source{b: &b[k]}, got); err != nil && len(got) > 0 || !bytes.Equal(got, model[k]) {
				t.Fatalf("step %d: backlog %d has %d bytes, want %d, %v", i, k, len(got), len(model[k]), err)
			}
			for _, one := range b[k].blocks {
				if seen[one] {
					t.Fatalf("step %d: a block is used twice", i)
				}
				seen[one] = true
			}
		}
	}
}

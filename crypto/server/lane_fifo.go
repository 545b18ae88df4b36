// SPDX-License-Identifier: Apache-2.0

package server

// fifo is a queue that takes no more memory than four times what was in it at
// once at most, and holds on to nothing that has left it.
type fifo[T any] struct {
	items []T
	head  int
}

func (f *fifo[T]) len() int { return len(f.items) - f.head }

func (f *fifo[T]) first() T { return f.items[f.head] }

// all is what is in it, until it changes.
func (f *fifo[T]) all() []T { return f.items[f.head:] }

func (f *fifo[T]) push(v T) {
	if len(f.items) == cap(f.items) && f.head > 0 && f.head >= len(f.items)/2 {
		n := copy(f.items, f.items[f.head:])
		clear(f.items[n:])
		f.items, f.head = f.items[:n], 0
	}
	f.items = append(f.items, v)
}

func (f *fifo[T]) pop() T {
	v := f.items[f.head]
	clear(f.items[f.head : f.head+1])
	if f.head++; f.head == len(f.items) {
		f.items, f.head = f.items[:0], 0
	}
	return v
}

// popLast takes what came last.
func (f *fifo[T]) popLast() T {
	last := len(f.items) - 1
	v := f.items[last]
	clear(f.items[last:])
	f.items = f.items[:last]
	return v
}

// reset empties it, and keeps no more than a little of its memory.
func (f *fifo[T]) reset() {
	const little = 64
	clear(f.items)
	f.items, f.head = f.items[:0], 0
	if cap(f.items) > little {
		f.items = nil
	}
}

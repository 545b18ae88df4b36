// SPDX-License-Identifier: Apache-2.0

package server

import (
	"sync"

	"pno/crypto/engine"
)

// lane is what waits for one engine. The engine gets no more at once than keeps
// it busy; the rest waits here, each client's operations in a queue of their own,
// and the queues are served in turn (deficit round robin, by the time that the
// keys' operations take). A client that asks for more than its share waits for
// itself: it cannot make others wait for longer than a turn of each. When the
// lane is full, whoever has most waiting in it loses what came last.
//
// Nothing of a lane blocks, and the engine is called without the lock: it may
// answer at once.
type lane struct {
	engine engine.Engine
	window int // operations that the engine has at once, at most
	depth  int // operations in the lane, with those of the engine

	mu     sync.Mutex
	out    int // that the engine has
	queued int
	shares map[string]*share // of clients with something waiting
	turn   []*share          // the same, in the order of their turns
	spare  []*share
	closed bool
}

// share is what one client has waiting.
type share struct {
	client string
	ops    []*engine.Op
	head   int
	credit int64 // microseconds of the engine that it may use before the next one's turn
}

// quantum is what a turn brings, in microseconds: an RSA-2048 signature.
const quantum = 250

func newLane(e engine.Engine) *lane {
	info := e.Info()
	l := &lane{engine: e, window: info.Window, depth: max(info.Capacity, 1), shares: map[string]*share{}}
	if l.window <= 0 || l.window > l.depth {
		l.window = l.depth
	}
	return l
}

// put takes operations of one client, and gives back those for which there is no
// room: its own, or another's that has more than its share.
func (l *lane) put(client string, ops []*engine.Op) (refused []*engine.Op) {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return ops
	}
	if l.queued == 0 && l.out+len(ops) <= l.window {
		l.out += len(ops)
		l.mu.Unlock()
		return l.give(ops)
	}
	for _, op := range ops {
		if no := l.enqueue(client, op); no != nil {
			refused = append(refused, no)
		}
	}
	next := l.next()
	l.mu.Unlock()
	return append(refused, l.give(next)...)
}

// took notes that the engine has given back n operations, and gives it the next.
// What it returns the engine did not take.
func (l *lane) took(n int) (refused []*engine.Op) {
	l.mu.Lock()
	l.out -= n
	var next []*engine.Op
	if l.queued > 0 {
		next = l.next()
	}
	l.mu.Unlock()
	return l.give(next)
}

// give hands over what is counted as out already.
func (l *lane) give(ops []*engine.Op) (refused []*engine.Op) {
	if len(ops) == 0 {
		return nil
	}
	n := l.engine.Submit(ops)
	if n == len(ops) {
		return nil
	}
	l.mu.Lock()
	l.out -= len(ops) - n
	l.mu.Unlock()
	return ops[n:]
}

// busy is how much there is to do.
func (l *lane) busy() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.out + l.queued
}

// enqueue adds an operation, and returns one that has to go for it.
func (l *lane) enqueue(client string, op *engine.Op) *engine.Op {
	mine := l.shares[client]
	var gone *engine.Op
	if l.out+l.queued >= l.depth {
		most := l.longest(mine)
		if most == nil {
			return op
		}
		gone = most.ops[len(most.ops)-1]
		most.ops = most.ops[:len(most.ops)-1]
		l.queued--
	}
	if mine == nil {
		mine = l.newShare(client)
	}
	mine.ops = append(mine.ops, op)
	l.queued++
	return gone
}

// longest is a share that has at least two operations more than this one, which
// has less than an equal part of the lane.
func (l *lane) longest(mine *share) *share {
	have, n := 0, len(l.turn)+1
	if mine != nil {
		have, n = mine.waiting(), len(l.turn)
	}
	if have*n > l.depth {
		return nil
	}
	var most *share
	for _, s := range l.turn {
		if s.waiting() >= have+2 && (most == nil || s.waiting() > most.waiting()) {
			most = s
		}
	}
	return most
}

func (s *share) waiting() int { return len(s.ops) - s.head }

func (l *lane) newShare(client string) *share {
	s := &share{}
	if n := len(l.spare); n > 0 {
		s, l.spare = l.spare[n-1], l.spare[:n-1]
	}
	s.client, s.credit = client, quantum
	l.shares[client] = s
	l.turn = append(l.turn, s)
	return s
}

// next takes what the engine has room for.
func (l *lane) next() []*engine.Op {
	n := min(l.window-l.out, l.queued)
	if n <= 0 {
		return nil
	}
	ops := make([]*engine.Op, 0, n)
	for len(ops) < n {
		s := l.turn[0]
		if s.credit <= 0 {
			s.credit += quantum
			l.turn = append(l.turn[1:], s)
			continue
		}
		op := s.ops[s.head]
		s.ops[s.head] = nil
		s.head++
		s.credit -= op.Owner.(*pending).cost()
		ops = append(ops, op)
		if s.waiting() == 0 {
			l.retire(s)
		}
	}
	l.out += n
	l.queued -= n
	return ops
}

// retire removes the share whose turn it is, which is empty.
func (l *lane) retire(s *share) {
	delete(l.shares, s.client)
	l.turn = l.turn[1:]
	s.ops, s.head = s.ops[:0], 0
	if len(l.spare) < 64 {
		l.spare = append(l.spare, s)
	}
}

// close takes no more, and returns what the engine has not had.
func (l *lane) close() (left []*engine.Op) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for _, s := range l.turn {
		left = append(left, s.ops[s.head:]...)
	}
	l.turn, l.queued = nil, 0
	clear(l.shares)
	return left
}

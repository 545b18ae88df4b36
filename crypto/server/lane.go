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
// itself: it cannot make others wait for longer than a turn of each.
//
// When the lane is full, an operation of a client that has an equal part of it
// already, with what the engine has of its, is refused. For another's, whoever
// has most loses what came last. If all that is too much is with the engine, which
// gives nothing back, the lane holds more than its depth until it is done: an equal
// part for each, or one operation, and whoever has more gets nothing new meanwhile.
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
	shares map[string]*share // of clients that have or owe something
	active int               // of those, that have
	turn   fifo[*share]      // those that have something waiting or owe, in the order of their turns
	spare  []*share
	closed bool
}

// share is what one client has in the lane.
type share struct {
	client string
	ops    fifo[*engine.Op] // that wait
	out    int              // that the engine has
	inTurn bool
	// credit is how many microseconds of the engine the client may use before the
	// next one's turn. One operation may take more than there is: the client owes
	// the rest, and its next turns go by, also if it has nothing waiting for a while.
	credit int64
}

func (s *share) has() int { return s.out + s.ops.len() }

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
	if len(ops) == 0 {
		return nil
	}
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return ops
	}
	s := l.share(client)
	if l.queued == 0 && l.out+len(ops) <= l.window {
		l.pass(s, len(ops))
		l.mu.Unlock()
		return l.give(ops)
	}
	for _, op := range ops {
		if no := l.enqueue(s, op); no != nil {
			refused = append(refused, no)
		}
	}
	next := l.next()
	l.retire(s) // it may have got nothing in
	l.mu.Unlock()
	return append(refused, l.give(next)...)
}

// admit counts an operation as out, whom nothing waits before; who asks gives it
// to the engine.
func (l *lane) admit(client string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || l.queued > 0 || l.out >= l.window {
		return false
	}
	l.pass(l.share(client), 1)
	return true
}

// pass counts operations as out.
func (l *lane) pass(s *share, n int) {
	if s.has() == 0 {
		l.active++
	}
	s.out += n
	l.out += n
}

// took notes that the engine has given back operations, and gives it the next.
// What it returns the engine did not take.
func (l *lane) took(done []*engine.Op) (refused []*engine.Op) {
	l.mu.Lock()
	l.back(done)
	next := l.next()
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
	l.back(ops[n:])
	l.mu.Unlock()
	return ops[n:]
}

// back counts operations as no longer with the engine.
func (l *lane) back(ops []*engine.Op) {
	l.out -= len(ops)
	for _, op := range ops {
		s := l.shares[op.Owner.(*pending).st.client]
		if s.out--; s.has() == 0 {
			l.active--
			l.retire(s)
		}
	}
}

// busy is how much there is to do.
func (l *lane) busy() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.out + l.queued
}

// enqueue adds an operation, and returns one that has to go for it.
func (l *lane) enqueue(s *share, op *engine.Op) (gone *engine.Op) {
	if l.out+l.queued >= l.depth {
		n := l.active
		if s.has() == 0 {
			n++
		}
		if s.has()*n >= l.depth {
			return op
		}
		if most := l.most(max(s.has()+2, l.depth/n+1)); most != nil {
			gone = most.ops.popLast()
			l.queued--
		}
	}
	if s.has() == 0 {
		l.active++
	}
	s.ops.push(op)
	l.queued++
	if !s.inTurn {
		s.inTurn, s.credit = true, quantum
		l.turn.push(s)
	}
	return gone
}

// most is the share that has most, and at least so much, of those with something
// waiting.
func (l *lane) most(least int) (most *share) {
	for _, s := range l.turn.all() {
		if s.ops.len() > 0 && s.has() >= least {
			most, least = s, s.has()+1
		}
	}
	return most
}

// share finds a client's share, or makes one.
func (l *lane) share(client string) *share {
	s := l.shares[client]
	if s != nil {
		return s
	}
	if n := len(l.spare); n > 0 {
		s, l.spare = l.spare[n-1], l.spare[:n-1]
	} else {
		s = new(share)
	}
	s.client = client
	l.shares[client] = s
	return s
}

// next takes what the engine has room for.
func (l *lane) next() []*engine.Op {
	if l.queued == 0 && l.out < l.window {
		l.forgive()
	}
	n := min(l.window-l.out, l.queued)
	if n <= 0 {
		return nil
	}
	ops := make([]*engine.Op, 0, n)
	for len(ops) < n {
		s := l.turn.first()
		switch {
		case s.credit <= 0:
			s.credit += quantum
			l.turn.push(l.turn.pop())
		case s.ops.len() == 0:
			l.leave()
		default:
			op := s.ops.pop()
			s.out++
			s.credit -= op.Owner.(*pending).cost()
			ops = append(ops, op)
		}
	}
	l.out += n
	l.queued -= n
	return ops
}

// forgive ends all turns, as nobody waits: the engine has room for more.
func (l *lane) forgive() {
	for l.turn.len() > 0 {
		l.leave()
	}
}

// leave ends the turns of the share whose turn it is.
func (l *lane) leave() {
	s := l.turn.pop()
	s.inTurn = false
	l.retire(s)
}

// retire forgets a share if its client neither has nor owes anything.
func (l *lane) retire(s *share) {
	if s.inTurn || s.has() > 0 || l.shares[s.client] != s {
		return
	}
	delete(l.shares, s.client)
	s.client = ""
	s.ops.reset()
	if len(l.spare) < 64 {
		l.spare = append(l.spare, s)
	}
}

// close takes no more, and returns what the engine has not had.
func (l *lane) close() (left []*engine.Op) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for _, s := range l.turn.all() {
		left = append(left, s.ops.all()...)
		s.ops.reset()
	}
	l.queued = 0
	l.forgive()
	return left
}

// SPDX-License-Identifier: Apache-2.0

package difffuzz

import (
	"fmt"
	"maps"
	"slices"
)

// The model knows of a socket what decides whether a call on it blocks, and
// what the peer will see of it. It does not know results: those are the
// kernel's to say.

// kind is what a description is, and the state of a TCP socket.
type kind int

const (
	fresh     kind = iota // a TCP socket with no connection, perhaps bound
	listening             // TCP
	connected             // TCP; also what is left of a connection
	datagram              // UDP
	pipeRead
	pipeWrite
	stream // one end of a Unix socket pair
	event
	poller // an epoll instance
)

// desc is an open file description.
type desc struct {
	kind     kind
	v6       bool
	refs     int
	nonblock bool
	bound    bool
	undone   bool   // it was connected, and then disconnected
	named    bool   // a datagram socket, by bind
	rebound  bool   // it was bound when its connection was over
	addr     string // that it is bound to
	reuse    bool

	peer       *desc // of a connection, pipe or pair; nil once it is gone
	unread     int   // bytes in its receive queue
	datagrams  []int // their lengths, of UDP
	eof        bool  // the peer's end of stream has come
	reset      bool  // and nothing else will happen
	over       bool  // it was closed both ways already: the reset is no error
	shutRead   bool
	shutWrite  bool
	linger0    bool
	untold     bool  // connect() said EINPROGRESS, and was not called since
	dialing    bool  // connect() was called, and may not have ended
	slow       bool  // has a receive timeout or low-water mark
	udpPeer    *desc // that connect has named
	udpAddr    string
	backlog    int
	pending    []*desc // connections not yet accepted
	passed     bool    // sent over a Unix socket
	edgeWanted bool    // a registration of it is edge-triggered
	watcher    *desc   // the instance that watches a listener
}

// slot is what the player's slot holds; port outlives the descriptor.
type slot struct {
	d    *desc
	port *desc
}

type model struct {
	slots  [Slots]slot
	forked bool // there was a child
}

func newModel() *model { return &model{} }

// awaits are the player's lines around a call.
type awaits struct{ before, after []string }

// maxUnread keeps whatever is sent below every buffer, so that nothing blocks.
const maxUnread = 24 << 10

// do judges a call and, if it is legal, plays it in the model.
func (m *model) do(op Op) (awaits, bool) {
	c := calls[op[0]]
	if c == nil {
		return awaits{}, false
	}
	t := turn{model: m}
	if !c(&t, op) {
		return awaits{}, false
	}
	return awaits{t.before, m.settle(t.touched)}, true
}

// enter begins a child or a thread; the function that it returns ends it, and
// says what to wait for then. A child's descriptors are copies, and end with it.
func (m *model) enter(name string) (leave func() []string) {
	if name != "child" {
		return func() []string { return nil }
	}
	saved := m.slots
	m.forked = true
	for _, s := range m.slots {
		if s.d != nil {
			s.d.refs++
		}
	}
	return func() []string {
		t := turn{model: m}
		mine := m.slots
		m.slots = saved
		for _, s := range mine {
			if s.d != nil {
				t.release(s.d)
			}
		}
		return m.settle(t.touched)
	}
}

// slotOf returns a slot that holds d, or -1.
func (m *model) slotOf(d *desc) int {
	return slices.IndexFunc(m.slots[:], func(s slot) bool { return s.d == d })
}

// settle waits until everything that is known to come to the descriptions has.
func (m *model) settle(touched map[*desc]bool) (lines []string) {
	var list []string
	for d := range maps.Keys(touched) {
		s := m.slotOf(d)
		if s < 0 {
			continue
		}
		switch {
		case d.kind == listening && len(d.pending) > 0:
			list = append(list, fmt.Sprintf("await poll %d in", s))
		case d.kind == fresh && d.reset: // refused
			list = append(list, fmt.Sprintf("await poll %d hup", s))
		case d.kind == datagram && len(d.datagrams) > 0:
			list = append(list, fmt.Sprintf("await poll %d in", s))
		case d.kind == connected:
			if d.unread > 0 && !d.reset {
				list = append(list, fmt.Sprintf("await bytes %d %d", s, d.unread))
			}
			if d.dialing && !d.reset {
				list = append(list, fmt.Sprintf("await poll %d out", s))
			}
			d.dialing = false
			switch {
			case d.reset && d.over:
				list = append(list, fmt.Sprintf("await poll %d hup", s))
			case d.reset:
				list = append(list, fmt.Sprintf("await poll %d err", s))
			case d.eof:
				list = append(list, fmt.Sprintf("await poll %d rdhup", s))
			}
		}
	}
	slices.Sort(list)
	return list
}

// turn is one call being played.
type turn struct {
	*model
	before  []string
	touched map[*desc]bool
}

// touch has the description settle after the call.
func (t *turn) touch(d *desc) {
	if d == nil {
		return
	}
	if t.touched == nil {
		t.touched = map[*desc]bool{}
	}
	t.touched[d] = true
}

// at is the description in a slot, or nil.
func (t *turn) at(op Op, i int) *desc {
	if s := op.num(i); s >= 0 && s < Slots {
		return t.slots[s].d
	}
	return nil
}

// put gives a description to a slot; the player closes what was there.
func (t *turn) put(op Op, i int, d, port *desc) {
	s := &t.slots[op.num(i)]
	if s.d != nil {
		t.release(s.d)
	}
	d.refs++
	*s = slot{d, port}
}

// release is a descriptor less, and with the last one the description ends.
func (t *turn) release(d *desc) {
	if d.refs--; d.refs > 0 {
		return
	}
	switch d.kind {
	case listening:
		t.abandon(d)
	case connected:
		t.hangUp(d)
	case stream, pipeRead, pipeWrite:
		if d.peer != nil {
			d.peer.eof = true
			d.peer.peer = nil
		}
	}
}

// abandon resets what nobody has accepted.
func (t *turn) abandon(l *desc) {
	for _, d := range l.pending {
		if d.peer != nil {
			t.kill(d.peer)
		}
	}
	l.pending = nil
}

// kill is a reset that reaches d.
func (t *turn) kill(d *desc) {
	d.over = d.eof && d.shutWrite
	d.reset = true
	d.eof = true
	if d.peer != nil {
		d.peer.peer = nil
	}
	d.peer = nil
	t.touch(d)
}

// hangUp is the last close of a connection.
func (t *turn) hangUp(d *desc) {
	p := d.peer
	if p == nil {
		return
	}
	if d.unread > 0 || d.linger0 {
		t.kill(p)
		return
	}
	p.eof = true
	p.peer = nil
	d.peer = nil
	t.touch(p)
}

// SPDX-License-Identifier: Apache-2.0

package session

import "sync/atomic"

// ready is a list of sockets that the network stack has news for: any
// goroutine appends, the loop takes all.
type ready struct {
	head atomic.Pointer[socket]
}

// push appends s unless it is in the list already, and reports whether it
// did.
func (r *ready) push(s *socket) bool {
	if s.queued.Swap(true) {
		return false
	}
	for {
		old := r.head.Load()
		s.next = old
		if r.head.CompareAndSwap(old, s) {
			return true
		}
	}
}

// empty tells whether take would return nothing.
func (r *ready) empty() bool { return r.head.Load() == nil }

// take returns the list in the order of arrival; the caller follows next and
// calls done for each socket before it looks at the socket's state.
func (r *ready) take() *socket {
	var list *socket
	for s := r.head.Swap(nil); s != nil; {
		next := s.next
		s.next = list
		list, s = s, next
	}
	return list
}

// done lets s be pushed again.
func (s *socket) done() { s.next = nil; s.queued.Store(false) }

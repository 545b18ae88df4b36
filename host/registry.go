// SPDX-License-Identifier: Apache-2.0

package host

import (
	"cmp"
	"context"
	"slices"

	"golang.org/x/sys/unix"

	"pno/internal/attach"
	"pno/offload"
)

// The registry knows which sessions hold a socket, by the SO_COOKIE of its
// placeholder file: the same number in every process that has the file. A
// socket that reaches a process by exec or SCM_RIGHTS is looked up here, and
// the DPU gives the process a reference of its own.

// addHolder notes that a session holds a socket. Called with mu held.
func (s *Server) addHolder(cookie uint64, x *session, row *attach.SocketInfo) {
	x.sockets[cookie] = row
	if x.ended {
		return
	}
	if s.sessions[x.id] == x {
		s.saveSession(x)
	}
	set := s.holders[cookie]
	if set == nil {
		set = make(map[*session]struct{}, 1)
		s.holders[cookie] = set
	}
	set[x] = struct{}{}
}

// dropHolder is called with mu held. The session keeps its own row: a child
// may still have to inherit it.
func (s *Server) dropHolder(cookie uint64, x *session) {
	set := s.holders[cookie]
	delete(set, x)
	if len(set) == 0 {
		delete(s.holders, cookie)
		s.parked[cookie].wake()
	}
}

func (s *Server) register(x *session, m *attach.RegisterSocket) unix.Errno {
	if int(m.Shard) >= x.layout.Shards {
		return unix.EINVAL
	}
	row := rowOf(x, m)
	s.mu.Lock()
	defer s.mu.Unlock()
	if x.sockets[m.Cookie] == nil && len(x.sockets) >= maxRegistered {
		return unix.ENOSPC
	}
	s.addHolder(m.Cookie, x, &row)
	return 0
}

// rowOf is what is registered, on the shards that there are.
func rowOf(x *session, m *attach.RegisterSocket) attach.SocketInfo {
	row := m.SocketInfo
	for i := x.layout.Shards; i < len(row.Handle); i++ {
		row.Handle[i] = 0
	}
	return row
}

func (s *Server) unregister(x *session, cookie uint64) unix.Errno {
	s.mu.Lock()
	defer s.mu.Unlock()
	if x.token != "" && !x.heir && len(x.early) < maxRegistered {
		if x.early == nil {
			x.early = make(map[uint64]struct{}, 1)
		}
		x.early[cookie] = struct{}{}
	}
	if x.sockets[cookie] == nil {
		return unix.ENOENT
	}
	delete(x.sockets, cookie)
	s.dropHolder(cookie, x)
	s.saveSession(x)
	return 0
}

// holder is one place where a looked-up socket can come from.
type holder struct {
	from uint64
	uid  int
	row  attach.SocketInfo
}

// lookup gives a session its own handles of a socket. proven tells that the
// process showed the socket itself: cookies can be guessed.
func (s *Server) lookup(ctx context.Context, x *session, cookie uint64, proven bool) (attach.SocketInfo, unix.Errno) {
	s.mu.Lock()
	if row := x.sockets[cookie]; row != nil {
		s.mu.Unlock()
		return *row, 0
	}
	k := s.parked[cookie]
	var from []holder
	for h := range s.holders[cookie] {
		if !h.lost && h.generation == x.generation {
			from = append(from, holder{h.id, h.peer.UID, *h.sockets[cookie]})
		}
	}
	s.mu.Unlock()
	rank := func(h holder) int { // whose word counts most
		switch h.uid {
		case x.peer.UID:
			return 0
		case 0:
			return 1
		}
		return 2
	}
	slices.SortFunc(from, func(a, b holder) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.from, b.from))
	})
	for _, h := range from {
		if rank(h) == 2 && x.peer.UID != 0 && !proven {
			return attach.SocketInfo{}, unix.EACCES
		}
		row, ok := s.transfer(ctx, x, h)
		if !ok {
			continue
		}
		s.mu.Lock()
		s.addHolder(cookie, x, &row)
		s.stats.moved++
		s.mu.Unlock()
		return row, 0
	}
	if k != nil {
		return s.lookupParked(ctx, x, k, proven)
	}
	return attach.SocketInfo{}, unix.ENOENT
}

// transfer asks the DPU for a reference to each of a socket's handles.
func (s *Server) transfer(ctx context.Context, x *session, h holder) (attach.SocketInfo, bool) {
	row := h.row
	got := false
	for shard, handle := range h.row.Handle {
		if handle == 0 && (h.row.Kind != attach.SockConn || shard != int(h.row.Shard)) {
			continue
		}
		a, err := s.ask(ctx, &offload.Control{Type: offload.CtlSocketTransfer, Session: x.id, From: h.from,
			Shard: shard, Handle: handle})
		if err != nil {
			s.log.Warn("socket not transferred", "from", h.from, "to", x.id, "shard", shard, "reason", err)
			return row, false
		}
		row.Handle[shard] = a.Handle
		got = true
	}
	return row, got
}

// cookieOf returns the SO_COOKIE of a descriptor, 0 if it is not a socket.
func cookieOf(fd int) uint64 {
	c, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		return 0
	}
	return c
}

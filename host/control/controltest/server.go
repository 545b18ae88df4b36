// SPDX-License-Identifier: Apache-2.0

// Package controltest has a DPU for tests of the host side: a control server
// that keeps the book-keeping of sessions, grants and sockets as dpud must, and
// moves no data. A Server may be used by any goroutine.
package controltest

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"pno/offload"
)

// Server is the scripted peer.
type Server struct {
	Path   string
	Shards int

	mu       sync.Mutex
	ln       *net.UnixListener
	conn     *net.UnixConn
	wg       sync.WaitGroup
	version  uint32
	log      []string
	sessions map[uint64]*Session
	grants   map[string]bool
	hook     func(m *offload.Control) *offload.Control
}

// Session is what the server knows of one.
type Session struct {
	Layout   offload.Layout
	Process  offload.Process
	FDs      []int       // memory, doorbells
	Channels map[int]int // interrupt eventfds
	Sockets  map[uint32]bool
}

// Start runs a server until the test ends.
func Start(t testing.TB, path string, shards int) *Server {
	t.Helper()
	s := &Server{Path: path, Shards: shards, version: offload.VersionMajor<<16 | offload.VersionMinor,
		sessions: make(map[uint64]*Session), grants: make(map[string]bool)}
	s.Up(t)
	t.Cleanup(s.Down)
	return s
}

// Up listens (again).
func (s *Server) Up(t testing.TB) {
	t.Helper()
	ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: s.Path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	s.ln = ln
	s.mu.Unlock()
	s.wg.Add(1)
	go s.accept(ln)
}

// Down ends the listener, the connection and every session, as a dpud that
// dies does.
func (s *Server) Down() {
	s.mu.Lock()
	if s.ln != nil {
		_ = s.ln.Close()
	}
	if s.conn != nil {
		_ = s.conn.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range s.sessions {
		s.drop(id)
	}
	clear(s.grants)
}

// SetVersion makes later hellos answer another version.
func (s *Server) SetVersion(v uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version = v
}

// Hook lets f answer requests; nil from f means the usual answer.
func (s *Server) Hook(f func(m *offload.Control) *offload.Control) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hook = f
}

// Grant is what OpFork does: a child may come with this token.
func (s *Server) Grant(token string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.grants[token] = true
}

// Grants counts the ones that are pending.
func (s *Server) Grants() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.grants)
}

// Sessions counts the open ones.
func (s *Server) Sessions() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.sessions)
}

// Session returns a copy of what is known of one, nil if it is not open.
func (s *Server) Session(id uint64) *Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	if x := s.sessions[id]; x != nil {
		c := *x
		c.Channels, c.Sockets = maps.Clone(x.Channels), maps.Clone(x.Sockets)
		return &c
	}
	return nil
}

// OfGrant is the handle of what is transferred by its token.
const OfGrant = 0x80000042

// Log returns the requests so far, one line each.
func (s *Server) Log() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.log...)
}

// Kick ends a session from the DPU's side.
func (s *Server) Kick(t testing.TB, id uint64, reason string) {
	t.Helper()
	b, err := offload.EncodeControl(&offload.Control{Type: offload.CtlSessionClose, Session: id, Reason: reason})
	if err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.conn.Write(b); err != nil {
		t.Fatal(err)
	}
	s.drop(id)
}

func (s *Server) accept(ln *net.UnixListener) {
	defer s.wg.Done()
	for {
		c, err := ln.AcceptUnix()
		if err != nil {
			return
		}
		s.mu.Lock()
		if s.conn != nil {
			_ = s.conn.Close()
		}
		s.conn = c
		s.mu.Unlock()
		s.wg.Add(1)
		go s.serve(c)
	}
}

func (s *Server) serve(c *net.UnixConn) {
	defer s.wg.Done()
	defer func() { _ = c.Close() }()
	buf, oob := make([]byte, offload.MaxControl+1), make([]byte, unix.CmsgSpace(4*(1+offload.MaxShards)))
	for {
		n, oobn, _, _, err := c.ReadMsgUnix(buf, oob)
		if err != nil {
			return
		}
		m, err := offload.DecodeControl(buf[:n])
		if err != nil {
			return
		}
		out, err := offload.EncodeControl(s.answer(m, rights(oob[:oobn])))
		if err != nil {
			return
		}
		if _, err := c.Write(out); err != nil {
			return
		}
	}
}

func rights(oob []byte) []int {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(msgs) == 0 {
		return nil
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil {
		return nil
	}
	return fds
}

func (s *Server) answer(m *offload.Control, fds []int) *offload.Control {
	s.mu.Lock()
	hook := s.hook
	s.log = append(s.log, fmt.Sprintf("%s session=%x channel=%d from=%x handle=%x token=%s reason=%s",
		m.Type, m.Session, m.Channel, m.From, m.Handle, m.Token, m.Reason))
	s.mu.Unlock()
	if hook != nil {
		if a := hook(m); a != nil {
			closeAll(fds)
			a.ID = m.ID
			return a
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	a, err := s.act(m, fds)
	if err != nil {
		closeAll(fds)
		return &offload.Control{Type: offload.CtlError, ID: m.ID, Error: err.Error(), Version: s.version}
	}
	a.Type, a.ID = offload.CtlOK, m.ID
	return a
}

var errUnknown = errors.New("unknown session")

func (s *Server) act(m *offload.Control, fds []int) (*offload.Control, error) {
	a := new(offload.Control)
	x := s.sessions[m.Session]
	switch m.Type {
	case offload.CtlHello:
		a.Version, a.Shards = s.version, s.Shards
		if m.Version>>16 != s.version>>16 {
			return nil, errors.New("protocol version does not fit")
		}
	case offload.CtlSessionOpen:
		if x != nil { // re-adoption
			closeAll(fds)
			return a, nil
		}
		if m.Layout == nil || m.Layout.Check() != nil || len(fds) != 1+s.Shards {
			return nil, fmt.Errorf("session_open with %d descriptors", len(fds))
		}
		s.sessions[m.Session] = &Session{*m.Layout, *m.Process, fds, make(map[int]int), make(map[uint32]bool)}
	case offload.CtlSessionClose:
		if x == nil {
			return nil, errUnknown
		}
		s.drop(m.Session)
	case offload.CtlChannelOpen:
		if x == nil || len(fds) != 1 {
			return nil, errUnknown
		}
		if old, ok := x.Channels[m.Channel]; ok {
			unix.Close(old)
		}
		x.Channels[m.Channel] = fds[0]
	case offload.CtlForkKeep:
	case offload.CtlForkAdopt, offload.CtlForkDrop:
		if !s.grants[m.Token] || (m.Type == offload.CtlForkAdopt && x == nil) {
			return nil, errors.New("unknown token")
		}
		delete(s.grants, m.Token)
	case offload.CtlSocketTransfer:
		a.Handle = m.Handle
		known := s.sessions[m.From] != nil
		if m.Token != "" {
			a.Handle, known = OfGrant, s.grants[m.Token]
		}
		if x == nil || !known {
			return nil, errUnknown
		}
		x.Sockets[a.Handle] = true
	case offload.CtlPing:
	default:
		return nil, fmt.Errorf("unknown request %q", m.Type)
	}
	return a, nil
}

func (s *Server) drop(id uint64) {
	x := s.sessions[id]
	delete(s.sessions, id)
	closeAll(x.FDs)
	for _, fd := range x.Channels {
		unix.Close(fd)
	}
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

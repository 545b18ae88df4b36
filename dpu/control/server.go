// SPDX-License-Identifier: Apache-2.0

// Package control serves the control link: the SOCK_SEQPACKET Unix socket on
// which the host agent opens and closes sessions, hands over their memory,
// doorbells and interrupts, and settles what fork and descriptor passing need.
// The messages are package offload's.
//
// Serve runs one goroutine that accepts and one a connection; requests of a
// connection are carried out in order. One agent is served at a time: the
// hello of another ends the older connection. Sessions do not end with the
// connection, since the data path needs no agent; the Backend decides what
// becomes of sessions whose agent stays away.
package control

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"pno/internal/unixsock"
	"pno/offload"
)

// Backend is what the control link controls. Its methods are called by one
// goroutine at a time. File descriptors passed to it are the Backend's, also
// when it fails.
type Backend interface {
	Shards() int
	// Connected tells that an agent said hello, Disconnected that it went.
	Connected()
	Disconnected()
	OpenSession(id uint64, l offload.Layout, p offload.Process, memory int, doorbells []int) error
	// KeepSession re-adopts a session that is open with this very layout.
	KeepSession(id uint64, l offload.Layout) error
	CloseSession(id uint64, reason string) error
	OpenChannel(id uint64, channel int, interrupt int) error
	AdoptFork(id uint64, token [16]byte) error
	DropFork(token [16]byte) error
	KeepFork(token [16]byte) error
	Transfer(to, from uint64, shard int, handle uint32) (uint32, error)
	// TransferParked transfers what a process keeps under a token.
	TransferParked(to uint64, token [16]byte, shard int) (uint32, error)
}

// Server is the DPU's end of the control link.
type Server struct {
	backend Backend
	log     *slog.Logger
	path    string

	mu    sync.Mutex
	agent *net.UnixConn // the agent that said hello last, guarded by mu
}

// New returns a server for the socket at path.
func New(path string, b Backend, log *slog.Logger) *Server {
	return &Server{backend: b, log: log, path: path}
}

// Listen makes the socket. A file left behind by a server that is gone is
// replaced; one that is served is an error.
func (s *Server) Listen() (*net.UnixListener, error) {
	l, err := unixsock.Listen(context.Background(), "unixpacket", s.path, 0o600)
	if err != nil {
		return nil, fmt.Errorf("listen for host agents on %w", err)
	}
	return l, nil
}

// Serve accepts agents on l until ctx ends, and closes l.
func (s *Server) Serve(ctx context.Context, l *net.UnixListener) error {
	defer context.AfterFunc(ctx, func() {
		_ = l.Close()
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.agent != nil {
			_ = s.agent.Close()
		}
	})()
	var wg sync.WaitGroup
	defer wg.Wait()
	var conns sync.Map
	defer conns.Range(func(c, _ any) bool { _ = c.(*net.UnixConn).Close(); return true })
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("accept host agent: %w", err)
			}
			s.log.Warn("accept host agent", "err", err)
			time.Sleep(10 * time.Millisecond) // out of descriptors: not in a tight loop
			continue
		}
		conns.Store(c, nil)
		wg.Go(func() {
			defer conns.Delete(c)
			s.serve(c)
		})
	}
}

// Notify tells the agent that a session ended by itself.
func (s *Server) Notify(session uint64, reason string) {
	b, err := offload.EncodeControl(&offload.Control{Type: offload.CtlSessionClose, Session: session, Reason: reason})
	if err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.agent != nil {
		_, _ = s.agent.Write(b) // a dead connection is noticed by its reader
	}
}

// maxFDs is the most descriptors of a message: memory and doorbells.
const maxFDs = offload.MaxShards + 1

func (s *Server) serve(c *net.UnixConn) {
	defer s.drop(c)
	buf := make([]byte, offload.MaxControl+1)
	oob := make([]byte, unix.CmsgSpace(4*(maxFDs+1)))
	hello := false
	for {
		n, nfd, flags, _, err := c.ReadMsgUnix(buf, oob)
		if err != nil || n == 0 {
			return
		}
		fds := takeFDs(oob[:nfd])
		m, err := offload.DecodeControl(buf[:n])
		if err == nil && flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
			err = fmt.Errorf("truncated: %w", offload.ErrControl)
		}
		if err != nil {
			s.log.Warn("control message", "err", err)
			closeFDs(fds)
			return
		}
		if !hello && m.Type != offload.CtlHello {
			s.log.Warn("control message before hello", "type", m.Type)
			closeFDs(fds)
			return
		}
		answer := s.handle(c, m, fds)
		answer.ID = m.ID
		hello = hello || m.Type == offload.CtlHello && answer.Type == offload.CtlOK
		b, err := offload.EncodeControl(answer)
		if err != nil {
			s.log.Error("control answer", "err", err)
			return
		}
		s.mu.Lock()
		_, err = c.Write(b)
		s.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (s *Server) drop(c *net.UnixConn) {
	_ = c.Close()
	s.mu.Lock()
	gone := s.agent == c
	if gone {
		s.agent = nil
	}
	s.mu.Unlock()
	if gone {
		s.backend.Disconnected()
		s.log.Info("host agent disconnected")
	}
}

// handle carries out one message and returns its answer. It consumes fds.
func (s *Server) handle(c *net.UnixConn, m *offload.Control, fds []int) *offload.Control {
	answer := &offload.Control{Type: offload.CtlOK}
	var err error
	switch m.Type {
	case offload.CtlHello:
		if err = s.hello(c, m); err == nil {
			answer.Version = offload.VersionMajor<<16 | offload.VersionMinor
			answer.Shards, answer.Features = s.backend.Shards(), offload.FeatureUDP|offload.FeatureSplice
		}
	case offload.CtlSessionOpen:
		err = s.openSession(m, fds)
		fds = nil
	case offload.CtlSessionClose:
		err = s.backend.CloseSession(m.Session, m.Reason)
	case offload.CtlChannelOpen:
		if len(fds) != 1 {
			err = fmt.Errorf("channel_open with %d descriptors, want its interrupt: %w", len(fds), offload.ErrControl)
			break
		}
		err = s.backend.OpenChannel(m.Session, m.Channel, fds[0])
		fds = nil
	case offload.CtlForkAdopt, offload.CtlForkDrop, offload.CtlForkKeep:
		err = s.fork(m)
	case offload.CtlSocketTransfer:
		answer.Handle, err = s.transfer(m)
	case offload.CtlPing:
	default:
		err = fmt.Errorf("unknown type %q: %w", m.Type, offload.ErrControl)
	}
	closeFDs(fds)
	if err != nil {
		s.log.Warn("control request refused", "type", m.Type, "session", m.Session, "err", err)
		return &offload.Control{Type: offload.CtlError, Error: err.Error()}
	}
	return answer
}

func (s *Server) hello(c *net.UnixConn, m *offload.Control) error {
	if major := m.Version >> 16; major != offload.VersionMajor {
		return fmt.Errorf("protocol version %d.%d, this dpud speaks %d.%d",
			major, m.Version&0xffff, offload.VersionMajor, offload.VersionMinor)
	}
	s.mu.Lock()
	old := s.agent
	s.agent = c
	s.mu.Unlock()
	if old == c {
		return nil
	}
	if old != nil {
		s.log.Info("another host agent took over")
		_ = old.Close()
	}
	s.backend.Connected()
	s.log.Info("host agent connected")
	return nil
}

func (s *Server) openSession(m *offload.Control, fds []int) error {
	switch {
	case m.Layout == nil || len(fds) == 0 || m.Session == 0 || m.Session>>63 != 0:
		closeFDs(fds)
		return fmt.Errorf("session_open without layout, memory or number: %w", offload.ErrControl)
	case len(fds) == 1:
		// Only the memory: the agent was restarted and finds its sessions.
		closeFDs(fds)
		return s.backend.KeepSession(m.Session, *m.Layout)
	}
	if err := s.backend.KeepSession(m.Session, *m.Layout); err == nil {
		closeFDs(fds)
		return nil
	}
	if err := m.Layout.Check(); err != nil {
		closeFDs(fds)
		return err
	}
	if m.Layout.Shards != s.backend.Shards() || len(fds) != 1+m.Layout.Shards {
		closeFDs(fds)
		return fmt.Errorf("session_open for %d shards with %d descriptors, this DPU has %d shards: %w",
			m.Layout.Shards, len(fds), s.backend.Shards(), offload.ErrControl)
	}
	var p offload.Process
	if m.Process != nil {
		p = *m.Process
	}
	return s.backend.OpenSession(m.Session, *m.Layout, p, fds[0], fds[1:])
}

func tokenOf(m *offload.Control) (tok [16]byte, err error) {
	if len(m.Token) != 2*len(tok) {
		return tok, fmt.Errorf("token %q: %w", m.Token, offload.ErrControl)
	}
	if _, err := hex.Decode(tok[:], []byte(m.Token)); err != nil {
		return tok, fmt.Errorf("token %q: %w", m.Token, offload.ErrControl)
	}
	return tok, nil
}

func (s *Server) transfer(m *offload.Control) (uint32, error) {
	if m.Token == "" {
		return s.backend.Transfer(m.Session, m.From, m.Shard, m.Handle)
	}
	tok, err := tokenOf(m)
	if err != nil {
		return 0, err
	}
	return s.backend.TransferParked(m.Session, tok, m.Shard)
}

func (s *Server) fork(m *offload.Control) error {
	tok, err := tokenOf(m)
	if err != nil {
		return err
	}
	switch m.Type {
	case offload.CtlForkDrop:
		return s.backend.DropFork(tok)
	case offload.CtlForkKeep:
		return s.backend.KeepFork(tok)
	}
	return s.backend.AdoptFork(m.Session, tok)
}

// takeFDs returns the descriptors that came with a message.
func takeFDs(oob []byte) (fds []int) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for i := range msgs {
		if got, err := unix.ParseUnixRights(&msgs[i]); err == nil {
			fds = append(fds, got...)
		}
	}
	return fds
}

func closeFDs(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

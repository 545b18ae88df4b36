// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"pno/host/control"
	"pno/host/policy"
	"pno/internal/attach"
	"pno/internal/unixsock"
	"pno/offload"
)

// Server is one host agent. Make it with New, run it with Serve once.
type Server struct {
	cfg   Config
	log   *slog.Logger
	link  *control.Client
	ready chan struct{}
	began time.Time
	wg    sync.WaitGroup // connections and requests to the DPU under way

	mu       sync.Mutex
	ctx      context.Context // of Serve
	policy   *policy.Policy
	loaded   time.Time
	conns    map[*attach.Conn]int // their uids
	sessions map[uint64]*session
	adopted  map[string]*session              // by fork token
	grants   map[string]*grant                // by fork token
	holders  map[uint64]map[*session]struct{} // registered sockets, by cookie
	parked   map[uint64]*parked               // connections on their way, by cookie
	stats    totals
	bypass   *bypasses
	bad      *badPeers

	state        *state   // nil: nothing is kept for the next hostd
	orphans      []uint64 // sessions that ended while the DPU was not reached
	orphanGrants []string
}

// New checks the configuration. Nothing runs and nothing is created yet.
func New(cfg Config) (*Server, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	s := &Server{
		cfg: cfg, log: cfg.Log, ready: make(chan struct{}), began: time.Now(),
		policy: cfg.Policy, loaded: time.Now(),
		conns: make(map[*attach.Conn]int), sessions: make(map[uint64]*session),
		adopted: make(map[string]*session), grants: make(map[string]*grant),
		holders: make(map[uint64]map[*session]struct{}), parked: make(map[uint64]*parked), stats: newTotals(),
	}
	s.bypass, s.bad = newBypasses(s), newBadPeers(s.log)
	s.link = control.New(control.Config{Path: cfg.DPU, Log: cfg.Log, Up: s.dpuUp, Down: s.dpuLost, Closed: s.dpuClosed})
	return s, nil
}

// Ready is closed once processes can connect.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Link is the state of the connection to the DPU.
func (s *Server) Link() control.Status { return s.link.Status() }

// WaitDPU waits until the DPU is reached.
func (s *Server) WaitDPU(ctx context.Context, d time.Duration) bool { return s.link.WaitUp(ctx, d) }

// SetPolicy puts a policy in force for processes that attach from now on.
func (s *Server) SetPolicy(p *policy.Policy) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.policy, s.loaded = p, time.Now()
	s.stats.policyReloads++
}

// PolicyFailed counts a policy file that could not be put in force.
func (s *Server) PolicyFailed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stats.policyErrors++
}

// Policy returns the policy in force.
func (s *Server) Policy() *policy.Policy {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.policy
}

// Serve listens and works until ctx ends. Sessions are left as they are: their
// processes and the DPU go on without hostd, and the next one re-adopts them.
func (s *Server) Serve(ctx context.Context) error {
	ln, err := unixsock.Listen(ctx, "unixpacket", s.cfg.Listen, s.cfg.SocketMode)
	if err != nil {
		return fmt.Errorf("listen on %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.mu.Lock()
	s.ctx = ctx
	s.mu.Unlock()

	var linkDone, stateDone sync.WaitGroup
	stopState := make(chan struct{})
	if s.cfg.State != "" {
		s.state, err = newState(s.cfg.State, func(err error) { s.log.Warn("state not kept", "reason", err) })
		if err != nil {
			_ = ln.Close()
			return err
		}
		s.recoverState()
		stateDone.Go(func() { s.state.run(stopState) })
	}
	linkDone.Go(func() { s.link.Run(ctx) })
	linkDone.Go(func() { s.bypass.run(ctx) })
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	s.log.Info("hostd ready", "listen", s.cfg.Listen, "dpu", s.cfg.DPU, "policy", s.Policy().Source())
	close(s.ready)
	err = s.accept(ctx, ln)
	cancel()
	s.hangUp()
	linkDone.Wait()
	s.wg.Wait()
	if s.state != nil {
		close(stopState)
		stateDone.Wait()
	}
	s.leave()
	return err
}

func (s *Server) accept(ctx context.Context, ln *net.UnixListener) error {
	defer func() { _ = ln.Close() }()
	for {
		uc, err := ln.AcceptUnix()
		if ctx.Err() != nil {
			if err == nil {
				_ = uc.Close()
			}
			return nil
		}
		if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ECONNABORTED) {
			s.log.Warn("accept on the attach socket failed, trying again", "reason", err)
			time.Sleep(50 * time.Millisecond)
			continue
		}
		if err != nil {
			return fmt.Errorf("accept on %s: %w", s.cfg.Listen, err)
		}
		c := attach.NewConn(uc)
		if !s.addConn(c) {
			c.Close()
			continue
		}
		s.wg.Go(func() {
			defer s.removeConn(c)
			s.serveConn(ctx, c)
		})
	}
}

// addConn refuses what is beyond any sensible use, so that connections that
// never say HELLO cannot take all descriptors, nor one user those of all.
func (s *Server) addConn(c *attach.Conn) bool {
	peer, err := c.Peer()
	if err != nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	mine := 0
	for _, uid := range s.conns {
		if uid == peer.UID {
			mine++
		}
	}
	if len(s.conns) >= 2*s.cfg.MaxSessions || peer.UID != 0 && mine >= 2*s.cfg.MaxPerUser {
		s.stats.refused["connections"]++
		return false
	}
	s.conns[c] = peer.UID
	return true
}

func (s *Server) removeConn(c *attach.Conn) {
	c.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
}

// hangUp ends the connections, but no session.
func (s *Server) hangUp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.Close()
	}
}

// leave frees hostd's own resources. Sessions go on without it.
func (s *Server) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, x := range s.sessions {
		x.ended = true
		x.release()
		delete(s.sessions, id)
	}
	for token, g := range s.grants {
		g.close()
		delete(s.grants, token)
	}
}

// dpuUp is called by the control client. If it was the link that broke and not
// the DPU, the sessions that were given up with it are still there, and hold
// the ports that their processes are about to bind again.
func (s *Server) dpuUp(st control.Status) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range s.sessions {
		if x.lost {
			s.closeAtDPU(x.id, 0, endReplaced)
		}
	}
	s.wg.Go(func() { s.reclaim(s.ctx, st.Generation) })
}

// dpuLost is called by the control client: the sockets of every session are
// dead, and its sleepers must learn it.
func (s *Server) dpuLost(generation uint64, reason error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, x := range s.sessions {
		if x.generation > generation || x.lost || x.unclaimed {
			continue
		}
		x.markLost()
		s.saveSession(x)
		n++
	}
	for token, g := range s.grants {
		g.close()
		delete(s.grants, token)
		s.state.remove(grantFile(token))
	}
	s.log.Warn("DPU lost, offloaded sockets are reset", "sessions", n, "reason", reason)
}

// dpuClosed is called by the control client: the DPU ended one session, which
// broke the channel protocol. To its process that is a lost DPU.
func (s *Server) dpuClosed(id uint64, reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	x := s.sessions[id]
	if x == nil || x.lost {
		return
	}
	s.stats.ended[endDPU]++
	s.log.Warn("the DPU ended a session", "session", id, "pid", x.peer.PID, "process", x.name, "reason", reason)
	x.markLost()
	s.saveSession(x)
}

// ask sends a request to the DPU.
func (s *Server) ask(ctx context.Context, m *offload.Control, fds ...int) (*offload.Control, error) {
	return s.link.Do(ctx, m, fds...)
}

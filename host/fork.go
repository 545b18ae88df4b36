// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"

	"golang.org/x/sys/unix"

	"pno/internal/attach"
	"pno/offload"
)

// grant is a child of fork that holds its parent's handles at the DPU and has
// not attached. hostd watches the child, so that a child that never attaches
// keeps its references until it exits, as of a kernel file.
type grant struct {
	token   string
	pid     int
	parent  *session
	start   uint64
	proc    *process
	sockets map[uint64]*attach.SocketInfo // the parent's, at the fork
}

func (g *grant) close() {
	if g.proc != nil {
		g.proc.close()
	}
	g.parent.ngrants--
}

// forked handles FORKED. The child says it on its parent's connection: the
// kernel tells who the sender is. The parent may say it too, for a child that
// dies too early, and says pid 0 when fork failed.
func (s *Server) forked(x *session, m *attach.Forked, sender attach.Peer) {
	token := hex.EncodeToString(m.Token[:])
	pid := int(m.PID)
	switch {
	case pid == 0:
		s.mu.Lock()
		g := s.grants[token]
		s.mu.Unlock()
		if g == nil || g.parent == x {
			s.dropGrant(token)
		}
		return
	case sender.PID != 0 && sender.PID != x.peer.PID:
		pid = sender.PID
	case parentOf(pid) != x.peer.PID:
		return // another pid namespace, or gone: the child's own message decides
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	if child := s.adopted[token]; child != nil { // it was faster on its own connection
		s.inherit(child, x.sockets)
		return
	}
	if s.grants[token] != nil || x.lost {
		return
	}
	if x.ngrants >= maxGrants {
		s.stats.protocolErrors++
		s.log.Warn("fork not watched: too many children that never attached", "session", x.id, "limit", maxGrants)
		return
	}
	g := &grant{token: token, pid: pid, start: startOf(pid), parent: x, sockets: maps.Clone(x.sockets)}
	x.ngrants++
	s.grants[token] = g
	s.stats.forks++
	proc, err := watchPID(pid, func() { s.dropGrant(token) })
	if err != nil {
		// It is gone already.
		go s.dropGrant(token)
		return
	}
	g.proc = proc
	s.saveGrant(g)
	s.wg.Go(func() {
		if _, err := s.ask(context.Background(), &offload.Control{Type: offload.CtlForkKeep, Token: token}); err != nil {
			s.log.Debug("fork grant not kept at the DPU", "reason", err)
		}
	})
}

// dropGrant tells the DPU that a child will not come.
func (s *Server) dropGrant(token string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return // the next hostd will find the child gone
	}
	if g := s.grants[token]; g != nil {
		g.close()
		delete(s.grants, token)
		s.state.remove(grantFile(token))
	}
	if s.adopted[token] != nil {
		return
	}
	s.stats.forksDropped++
	s.wg.Go(func() {
		_, err := s.ask(context.Background(), &offload.Control{Type: offload.CtlForkDrop, Token: token})
		if err != nil {
			s.log.Debug("fork grant not dropped at the DPU", "reason", err)
		}
	})
}

// adopt makes the handles of a fork those of a new session.
func (s *Server) adopt(ctx context.Context, x *session, token string) error {
	s.mu.Lock()
	g := s.grants[token]
	taken := s.adopted[token] != nil
	s.mu.Unlock()
	if taken {
		return errors.New("the fork token was used already")
	}
	if g != nil && g.pid != x.peer.PID {
		return fmt.Errorf("the fork token is another process's (pid %d)", g.pid)
	}
	_, err := s.ask(ctx, &offload.Control{Type: offload.CtlForkAdopt, Session: x.id, Token: token})
	if err != nil {
		return fmt.Errorf("adopt the sockets of a fork: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	x.token = token
	s.adopted[token] = x
	s.stats.forksAdopted++
	if g := s.grants[token]; g != nil {
		s.inherit(x, g.sockets)
		g.close()
		delete(s.grants, token)
		s.state.remove(grantFile(token))
	}
	return nil
}

// inherit copies registered sockets to a child's session, once: what the parent
// registers later is not the child's. Called with mu held.
func (s *Server) inherit(x *session, rows map[uint64]*attach.SocketInfo) {
	if x.heir {
		return
	}
	for cookie, row := range rows {
		if _, closed := x.early[cookie]; !closed && x.sockets[cookie] == nil {
			s.addHolder(cookie, x, row)
		}
	}
	x.heir, x.early = true, nil
}

// leaveGrants is for a process that forked off, never attached, and called
// exec: what it holds by the grant is put into a session of its own, which is
// kept, as that of any replaced image, until the new image is READY.
func (s *Server) leaveGrants(ctx context.Context, peer attach.Peer) {
	s.mu.Lock()
	var mine []*grant
	for _, g := range s.grants {
		if g.pid == peer.PID {
			mine = append(mine, g)
		}
	}
	s.mu.Unlock()
	for _, g := range mine {
		if err := s.leaveGrant(ctx, peer, g); err != nil {
			s.log.Warn("sockets held over fork and exec are lost", "pid", peer.PID, "reason", err)
			s.dropGrant(g.token)
		}
	}
}

func (s *Server) leaveGrant(ctx context.Context, peer attach.Peer, g *grant) error {
	o, err := s.newSession(ctx, peer, g.parent.name+" (before exec)", false, 1)
	if err != nil {
		return err
	}
	o.closeFDs()
	if err = s.adopt(ctx, o.session, g.token); err == nil {
		var pidfd int
		if pidfd, err = unix.PidfdOpen(peer.PID, 0); err == nil {
			err = s.admit(o.session, pidfd)
		}
	}
	if err != nil {
		s.end(o.session, endFailed)
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keepLocked(o.session)
	return nil
}

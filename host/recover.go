// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"pno/host/control"
	"pno/internal/attach"
	"pno/offload"
)

// recoverState finds the sessions of a former hostd again: those whose process
// lives and lets its descriptors be taken. It runs before the first process can
// attach; the DPU is asked for them once it is reached (reclaim).
func (s *Server) recoverState() {
	sessions, grants := s.state.load()
	for _, saved := range sessions {
		x, err := s.recoverSession(saved)
		if err != nil {
			s.log.Warn("session of a former hostd not re-adopted", "session", saved.ID, "pid", saved.PID, "reason", err)
			s.state.remove(sessionFile(saved.ID))
			if errors.Is(err, errProcessGone) {
				s.orphans = append(s.orphans, saved.ID)
			}
			continue
		}
		s.log.Info("session of a former hostd found", "session", x.id, "pid", x.peer.PID, "process", x.name, "channels", x.channels())
	}
	for _, saved := range grants {
		if err := s.recoverGrant(saved); err != nil {
			s.orphanGrants = append(s.orphanGrants, saved.Token)
			s.state.remove(grantFile(saved.Token))
		}
	}
}

var errProcessGone = errors.New("the process is gone")

// openSame returns a pidfd of the process that a file tells about.
func openSame(pid int, start uint64) (int, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return -1, errProcessGone
	}
	if startOf(pid) != start || start == 0 {
		unix.Close(fd)
		return -1, errProcessGone
	}
	return fd, nil
}

func (s *Server) recoverSession(saved *savedSession) (*session, error) {
	pidfd, err := openSame(saved.PID, saved.Start)
	if err != nil {
		return nil, err
	}
	x := &session{
		id: saved.ID, peer: attach.Peer{PID: saved.PID, UID: saved.UID, GID: saved.GID}, name: saved.Name, start: saved.Start,
		policyFrom: saved.Policy, layout: saved.Layout, attached: saved.Attached, claim: -1, unclaimed: true,
		intr: make([]int, saved.Layout.Channels), sockets: make(map[uint64]*attach.SocketInfo),
	}
	for i := range x.intr {
		x.intr[i] = -1
	}
	if err := x.takeFDs(pidfd, saved.Interrupts); err != nil {
		x.release()
		unix.Close(pidfd)
		return nil, err
	}
	proc, err := watchFD(pidfd, func() { s.end(x, endExit) })
	if err != nil {
		x.release()
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	x.proc = proc
	if x.ended { // the process was faster
		return nil, errProcessGone
	}
	s.sessions[x.id] = x
	for cookie, row := range saved.Sockets {
		if row != nil {
			s.addHolder(cookie, x, row)
		}
	}
	if saved.Exec {
		s.keepLocked(x)
	}
	return x, nil
}

// takeFDs copies the session memory and the interrupts out of the process.
func (x *session) takeFDs(pidfd int, interrupts map[int]uint64) error {
	channel := make(map[uint64]int, len(interrupts))
	for n, id := range interrupts {
		if n >= 0 && n < len(x.intr) && id != 0 {
			channel[id] = n
		}
	}
	proc := "/proc/" + strconv.Itoa(x.peer.PID)
	names, err := os.ReadDir(proc + "/fd")
	if err != nil {
		return fmt.Errorf("look at its descriptors: %w", err)
	}
	for _, n := range names {
		target, err := os.Readlink(proc + "/fd/" + n.Name())
		num, nerr := strconv.Atoi(n.Name())
		if err != nil || nerr != nil {
			continue
		}
		switch {
		case strings.HasPrefix(target, "/memfd:pno-session"):
			if x.mem == nil {
				x.mem = x.takeMemory(pidfd, num)
			}
		case target == "anon_inode:[eventfd]":
			n, ok := channel[eventID(proc+"/fdinfo/"+n.Name())]
			if !ok || x.intr[n] >= 0 {
				continue
			}
			if x.intr[n], err = unix.PidfdGetfd(pidfd, num, 0); err != nil {
				return fmt.Errorf("take an interrupt back: %w", err)
			}
		}
	}
	if x.mem == nil || x.intr[0] < 0 {
		return errors.New("its session memory is not among its descriptors, or may not be taken")
	}
	return nil
}

// takeMemory returns nil for a memory of another session.
func (x *session) takeMemory(pidfd, num int) *memory {
	fd, err := unix.PidfdGetfd(pidfd, num, 0)
	if err != nil {
		return nil
	}
	m, l, err := openMemory(fd)
	if err != nil {
		unix.Close(fd)
		return nil
	}
	if m.header().SessionID != x.id || l != x.layout {
		m.close()
		unix.Close(fd)
		return nil
	}
	x.claim = fd
	return m
}

func (s *Server) recoverGrant(saved *savedGrant) error {
	pidfd, err := openSame(saved.PID, saved.Start)
	if err != nil {
		return err
	}
	proc, err := watchFD(pidfd, func() { s.dropGrant(saved.Token) })
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	g := &grant{token: saved.Token, pid: saved.PID, start: saved.Start, parent: new(session), proc: proc, sockets: saved.Sockets}
	g.parent.ngrants++
	s.grants[g.token] = g
	return nil
}

// reclaim asks the DPU for the recovered sessions, and tells it of what ended
// while there was no hostd. What the DPU no longer has is lost.
func (s *Server) reclaim(ctx context.Context, generation uint64) {
	s.mu.Lock()
	var mine []*session
	for _, x := range s.sessions {
		if x.unclaimed {
			mine = append(mine, x)
		}
	}
	s.mu.Unlock()
	for _, x := range mine {
		err := s.reclaimOne(ctx, x)
		s.mu.Lock()
		if errors.Is(err, control.ErrDown) {
			s.mu.Unlock()
			return // again with the next link
		}
		x.unclaimed, x.generation = false, generation
		if x.claim >= 0 {
			unix.Close(x.claim)
			x.claim = -1
		}
		switch {
		case x.ended: // noted among the orphans
		case err != nil:
			s.log.Warn("the DPU has not kept a session", "session", x.id, "pid", x.peer.PID, "reason", err)
			x.markLost()
			s.saveSession(x)
		default:
			s.stats.readopted++
		}
		s.mu.Unlock()
	}
	s.mu.Lock()
	orphans, tokens := s.orphans, s.orphanGrants
	s.orphans, s.orphanGrants = nil, nil
	s.mu.Unlock()
	for _, id := range orphans {
		s.closeAtDPU(id, generation, endExit)
	}
	for _, token := range tokens {
		s.dropGrant(token)
	}
}

func (s *Server) reclaimOne(ctx context.Context, x *session) error {
	l := x.layout
	_, err := s.ask(ctx, &offload.Control{Type: offload.CtlSessionOpen, Session: x.id, Layout: &l,
		Process: &offload.Process{PID: x.peer.PID, Name: x.name}}, x.claim)
	return err
}

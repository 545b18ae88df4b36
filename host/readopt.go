// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"pno/internal/attach"
	"pno/offload"
)

// rebind finds the session that a process says it has, if this hostd knows it:
// recovered from a former hostd, or left by a connection that broke.
func (s *Server) rebind(peer attach.Peer, id uint64) (x *session, known bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	x = s.sessions[id]
	switch {
	case x == nil:
		return nil, false, nil
	case x.peer.PID != peer.PID:
		return nil, true, errors.New("the session is another process's")
	case x.lost:
		return nil, true, errors.New("the session's DPU is lost; attach anew")
	}
	if x.kept != nil {
		x.kept.Stop()
		x.kept = nil
		s.saveSession(x)
	}
	return x, true, nil
}

// readopt takes over a session that a former hostd opened: the process brings
// its memory and its interrupts back, the DPU still has the session and agrees
// on its layout. The id is 63 random bits that only the process, the DPU and
// the former hostd know.
func (s *Server) readopt(ctx context.Context, peer attach.Peer, m *attach.Hello, p *attach.Packet) (*opening, error) {
	if len(p.FDs) < 2 {
		return nil, errors.New("re-adopt a session: the session memory and an interrupt must come with the message")
	}
	mem, l, err := openMemory(p.FDs[0])
	if err != nil {
		return nil, fmt.Errorf("re-adopt a session: %w", err)
	}
	intr := p.FDs[1:]
	o := &opening{memfd: -1, intr0: -1, session: &session{
		id: m.Session, peer: peer, name: attach.Text(m.Name[:]), layout: l, generation: s.link.Status().Generation,
		attached: time.Now(), mem: mem, intr: make([]int, l.Channels), sockets: make(map[uint64]*attach.SocketInfo),
	}}
	for i := range o.intr {
		o.intr[i] = -1
	}
	if err := s.readoptAtDPU(ctx, o, p.FDs[0], intr); err != nil {
		o.markLost()
		for _, fd := range intr {
			raise(fd)
		}
		o.release()
		return nil, fmt.Errorf("re-adopt a session: %w", err)
	}
	copy(o.intr, intr)
	unix.Close(p.FDs[0])
	p.FDs = nil
	s.mu.Lock()
	s.stats.readopted++
	s.mu.Unlock()
	return o, nil
}

func (s *Server) readoptAtDPU(ctx context.Context, o *opening, memfd int, intr []int) error {
	if len(intr) > o.layout.Channels {
		return fmt.Errorf("%d interrupts for %d channels", len(intr), o.layout.Channels)
	}
	l := o.layout
	_, err := s.ask(ctx, &offload.Control{Type: offload.CtlSessionOpen, Session: o.id, Layout: &l,
		Process: &offload.Process{PID: o.peer.PID, Name: o.name}}, memfd) // which knows what it may
	if err != nil {
		return err
	}
	for i, fd := range intr {
		if _, err := s.ask(ctx, &offload.Control{Type: offload.CtlChannelOpen, Session: o.id, Channel: i}, fd); err != nil {
			return err
		}
	}
	return nil
}

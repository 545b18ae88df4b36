// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"pno/host/control"
	"pno/host/policy"
	"pno/internal/attach"
	"pno/offload"
)

// session is one process image at the DPU. Its fields are set before it enters
// Server.sessions, or guarded by Server.mu.
type session struct {
	id         uint64
	peer       attach.Peer
	name       string
	policyFrom string
	foreign    bool           // may use addresses that are not the DPU's
	runPolicy  *policy.Policy // its own, if it named a file
	layout     offload.Layout
	features   uint64 // of offload, that this DPU has
	generation uint64 // of the DPU link that it was opened on
	attached   time.Time
	start      uint64 // of the process, see startOf
	token      string // of the fork that it came from

	mem     *memory
	intr    []int // interrupt eventfd by channel, -1 not open
	proc    *process
	conn    *attach.Conn
	sockets map[uint64]*attach.SocketInfo // registered, by cookie
	ngrants int

	// Of a fork: heir says that it has its parent's rows. Until then, early are
	// those that it has unregistered already.
	heir  bool
	early map[uint64]struct{}

	unclaimed bool // recovered from a former hostd, the DPU was not asked yet
	claim     int  // session memory, while unclaimed

	lost  bool        // the DPU that it was opened on is gone
	kept  *time.Timer // exec replaced the image; it waits for the new one
	ended bool
}

// reasons for the end of a session, as counted and logged.
const (
	endExit     = "process exited"
	endProtocol = "protocol error"
	endReplaced = "attached anew"
	endExec     = "exec, sockets taken over"
	endExecWait = "exec, nothing attached"
	endFailed   = "attach failed"
	endDPU      = "ended by the DPU"
)

// newID returns a random session id: a restarted hostd cannot collide with
// sessions that the DPU still has.
func newID() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return binary.LittleEndian.Uint64(b[:])>>1 | 1
}

// markLost tells the process that its DPU is gone.
func (x *session) markLost() {
	x.lost = true
	x.mem.setStatus(offload.StatusDPULost)
	x.raiseAll()
}

func (x *session) raiseAll() {
	for _, fd := range x.intr {
		if fd >= 0 {
			raise(fd)
		}
	}
}

// release frees hostd's own resources.
func (x *session) release() {
	if x.kept != nil {
		x.kept.Stop()
	}
	if x.proc != nil {
		x.proc.close()
	}
	for i, fd := range x.intr {
		if fd >= 0 {
			unix.Close(fd)
			x.intr[i] = -1
		}
	}
	if x.mem != nil {
		x.mem.close()
	}
	if x.unclaimed && x.claim >= 0 {
		unix.Close(x.claim)
		x.claim = -1
	}
}

func (x *session) channels() int {
	n := 0
	for _, fd := range x.intr {
		if fd >= 0 {
			n++
		}
	}
	return n
}

// opening is a session that is being made, with the descriptors that go to the
// process.
type opening struct {
	*session
	memfd     int
	doorbells []int
	intr0     int // a copy: the session may end while it is being sent
}

// fds are the descriptors of WELCOME, none for a re-adopted session.
func (o *opening) fds() []int {
	if o.memfd < 0 {
		return nil
	}
	return append(append([]int{o.memfd}, o.doorbells...), o.intr0)
}

func (o *opening) closeFDs() {
	for _, fd := range append(o.doorbells, o.memfd, o.intr0) {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	o.memfd, o.intr0, o.doorbells = -1, -1, nil
}

// newSession makes the memory, doorbells and the interrupt of channel 0, and
// opens the session at the DPU. On error nothing is left anywhere.
func (s *Server) newSession(ctx context.Context, peer attach.Peer, name string, foreign bool, channels int) (*opening, error) {
	status := s.link.Status()
	l := s.cfg.Layout
	l.Shards = status.Shards
	if channels > 0 {
		l.Channels = channels
	}
	if err := l.Check(); err != nil {
		return nil, err
	}
	o := &opening{memfd: -1, intr0: -1, session: &session{
		id: newID(), peer: peer, name: name, foreign: foreign, layout: l, features: status.Features & (offload.FeatureUDP | offload.FeatureSplice),
		generation: status.Generation, attached: time.Now(),
		intr: make([]int, l.Channels), sockets: make(map[uint64]*attach.SocketInfo),
	}}
	for i := range o.intr {
		o.intr[i] = -1
	}
	err := o.makeFDs(s.cfg.SpinNanos)
	if err == nil {
		err = s.openAtDPU(ctx, o)
	}
	if err != nil {
		o.closeFDs()
		o.release()
		return nil, err
	}
	return o, nil
}

func (o *opening) makeFDs(spin uint32) error {
	var err error
	if o.mem, o.memfd, err = newMemory(o.id, o.layout, spin); err != nil {
		return err
	}
	for range o.layout.Shards {
		fd, err := newEvent()
		if err != nil {
			return err
		}
		o.doorbells = append(o.doorbells, fd)
	}
	if o.intr[0], err = newEvent(); err != nil {
		return err
	}
	if o.intr0, err = unix.FcntlInt(uintptr(o.intr[0]), unix.F_DUPFD_CLOEXEC, 0); err != nil {
		return fmt.Errorf("copy eventfd: %w", err)
	}
	return nil
}

func (s *Server) openAtDPU(ctx context.Context, o *opening) error {
	l := o.layout
	open := &offload.Control{Type: offload.CtlSessionOpen, Session: o.id, Layout: &l,
		Process: &offload.Process{PID: o.peer.PID, Name: o.name, Transparent: o.foreign}}
	if _, err := s.ask(ctx, open, append([]int{o.memfd}, o.doorbells...)...); err != nil {
		return err
	}
	if _, err := s.ask(ctx, &offload.Control{Type: offload.CtlChannelOpen, Session: o.id}, o.intr[0]); err != nil {
		s.closeAtDPU(o.id, o.generation, endFailed)
		return err
	}
	return nil
}

// closeAtDPU tells the DPU, in the background, that a session is over. After a
// loss there is nothing to tell: the session went with its link's generation,
// unless that is given as 0, for any.
func (s *Server) closeAtDPU(id, generation uint64, reason string) {
	s.wg.Go(func() {
		if generation != 0 && s.link.Status().Generation != generation {
			return
		}
		_, err := s.ask(context.Background(), &offload.Control{Type: offload.CtlSessionClose, Session: id, Reason: reason})
		if err != nil && generation != 0 {
			s.log.Warn("session not closed at the DPU", "session", id, "reason", err)
		}
	})
}

var errGenerationGone = errors.New("the DPU was lost meanwhile")

// admit puts an open session into the table and starts watching its process.
func (s *Server) admit(x *session, pidfd int) error {
	proc, err := watchFD(pidfd, func() { s.end(x, endExit) })
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// A loss after this look finds the session in the table and marks it.
	if st := s.link.Status(); st.State != control.Up || st.Generation != x.generation {
		proc.close()
		return fmt.Errorf("admit session: %w", errGenerationGone)
	}
	x.proc = proc
	if x.ended { // the process was faster
		return nil
	}
	x.start = startOf(x.peer.PID)
	s.sessions[x.id] = x
	s.saveSession(x)
	return nil
}

// end takes a session out of everything. It may be called several times, from
// any goroutine; the first reason counts.
func (s *Server) end(x *session, reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.endLocked(x, reason)
}

func (s *Server) endLocked(x *session, reason string) {
	if x.ended || s.ctx.Err() != nil && s.sessions[x.id] == x {
		return // while hostd stops, the next one will find the process gone
	}
	x.ended = true
	delete(s.sessions, x.id)
	s.state.remove(sessionFile(x.id))
	if x.token != "" && s.adopted[x.token] == x {
		delete(s.adopted, x.token)
	}
	for cookie := range x.sockets {
		s.dropHolder(cookie, x)
	}
	s.stats.fold(x)
	s.stats.ended[reason]++
	if !x.lost {
		x.mem.setStatus(offload.StatusClosed)
		x.raiseAll()
		if x.unclaimed {
			s.orphans = append(s.orphans, x.id)
		} else {
			s.closeAtDPU(x.id, x.generation, reason)
		}
	}
	x.release()
	if x.conn != nil {
		_ = x.conn.SetReadDeadline(time.Now().Add(orphanGrace))
	}
	s.log.Info("session ended", "session", x.id, "pid", x.peer.PID, "process", x.name, "reason", reason)
}

// keepLocked holds a session of a replaced image until the new one is READY.
func (s *Server) keepLocked(x *session) {
	switch {
	case x.ended || x.kept != nil:
	case x.lost:
		s.endLocked(x, endReplaced)
	default:
		x.kept = time.AfterFunc(execGrace, func() { s.end(x, endExecWait) })
		s.saveSession(x)
	}
}

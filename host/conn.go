// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sys/unix"

	"pno/host/control"
	"pno/host/policy"
	"pno/internal/attach"
	"pno/offload"
)

// refusal is why a HELLO gets no session.
type refusal struct {
	errno    unix.Errno
	reason   string // counted under this name
	text     string
	fallback policy.Action
}

func (s *Server) serveConn(ctx context.Context, c *attach.Conn) {
	peer, err := c.Peer()
	if err == nil {
		err = c.PassCred()
	}
	if err != nil {
		s.bad.warn(-1, "attach connection without credentials", "reason", err)
		return
	}
	_ = c.SetReadDeadline(time.Now().Add(helloTimeout))
	p, err := c.Recv()
	if err != nil {
		s.badConn(peer, err)
		return
	}
	defer p.Close()
	if m, ok := p.Msg.(*attach.Bypass); ok {
		_ = s.ack(c, p.ID, s.bypass.announced(peer, m))
		return
	}
	hello, ok := p.Msg.(*attach.Hello)
	if !ok {
		s.badConn(peer, fmt.Errorf("first message is a %T: %w", p.Msg, attach.ErrMessage))
		return
	}
	x, no := s.hello(ctx, c, peer, hello, p)
	if no != nil {
		s.refuse(c, peer, hello, p.ID, no)
		return
	}
	if x == nil {
		return
	}
	_ = c.SetReadDeadline(time.Time{})
	s.serveSession(ctx, c, x)
}

func (s *Server) badConn(peer attach.Peer, err error) {
	if errors.Is(err, io.EOF) || s.ctxDone() {
		return
	}
	s.mu.Lock()
	s.stats.protocolErrors++
	s.mu.Unlock()
	s.bad.warn(peer.UID, "attach connection ended", "pid", peer.PID, "reason", err)
}

func (s *Server) ctxDone() bool { return s.ctx.Err() != nil }

func (s *Server) refuse(c *attach.Conn, peer attach.Peer, hello *attach.Hello, id uint32, no *refusal) {
	s.mu.Lock()
	s.stats.refused[no.reason]++
	s.mu.Unlock()
	name := attach.Text(hello.Name[:])
	s.bad.warn(peer.UID, "attach refused", "pid", peer.PID, "process", name, "reason", no.text, "then", no.fallback)
	m := &attach.Refused{Err: int32(no.errno), Fallback: uint8(no.fallback)}
	attach.SetText(m.Text[:], no.text)
	_ = s.send(c, m, id)
}

func (s *Server) send(c *attach.Conn, m attach.Message, id uint32, fds ...int) error {
	_ = c.SetWriteDeadline(time.Now().Add(sendTimeout))
	return c.Send(m, id, fds...)
}

// hello answers a process's first message. It returns the session, or why
// there is none, or neither: a probe, or a process that is gone.
func (s *Server) hello(ctx context.Context, c *attach.Conn, peer attach.Peer, m *attach.Hello, p *attach.Packet) (*session, *refusal) {
	token := ""
	if m.Flags&attach.HelloToken != 0 {
		token = hex.EncodeToString(m.Token[:])
	}
	pol, own, perr := s.policyFor(peer, attach.Text(m.Policy[:]), token)
	fallback := policy.Kernel
	if pol.NoDPU == policy.NoDPURefuse {
		fallback = policy.Refuse
	}
	no := s.mayAttach(ctx, peer, m, perr)
	if no != nil {
		no.fallback = fallback
		return nil, no
	}
	if m.Flags&attach.HelloProbe != 0 {
		_ = s.send(c, &attach.Ack{}, p.ID)
		return nil, nil
	}
	var o *opening
	var err error
	if x, known, err := s.rebind(peer, m.Session); known {
		if err == nil {
			err = s.send(c, s.welcome(&opening{session: x, memfd: -1, intr0: -1}, pol), p.ID)
		}
		if err != nil {
			return nil, &refusal{unix.ESTALE, "open", err.Error(), fallback}
		}
		return x, nil
	}
	if m.Session != 0 {
		o, err = s.readopt(ctx, peer, m, p)
	} else {
		o, err = s.open(ctx, peer, attach.Text(m.Name[:]), pol, token)
	}
	if err != nil {
		return nil, &refusal{openErrno(err), "open", err.Error(), fallback}
	}
	defer o.closeFDs()
	o.policyFrom = pol.Source()
	if own {
		o.runPolicy = pol
	}
	pidfd, err := c.PeerPIDFD(peer.PID)
	if err == nil {
		err = s.admit(o.session, pidfd)
	}
	if err == nil {
		s.log.Info("process attached", "session", o.id, "pid", peer.PID, "uid", peer.UID, "process", o.name,
			"forked", token != "", "readopted", m.Session != 0, "policy", o.policyFrom, "transparent", o.foreign)
		err = s.send(c, s.welcome(o, pol), p.ID, o.fds()...)
	}
	if err != nil {
		s.end(o.session, endFailed)
		return nil, &refusal{unix.EAGAIN, "open", err.Error(), fallback}
	}
	return o.session, nil
}

func openErrno(err error) unix.Errno {
	var re *control.RequestError
	switch {
	case errors.Is(err, control.ErrDown):
		return unix.ENETDOWN
	case errors.As(err, &re):
		return unix.ESTALE
	}
	return unix.ENOMEM
}

// mayAttach checks what can be known before anything is made.
func (s *Server) mayAttach(ctx context.Context, peer attach.Peer, m *attach.Hello, perr error) *refusal {
	if m.ABIMajor != offload.VersionMajor {
		return &refusal{unix.EPROTONOSUPPORT, "version", fmt.Sprintf("libpno.so speaks protocol version %d.%d, hostd %d.%d; install the same release of both",
			m.ABIMajor, m.ABIMinor, offload.VersionMajor, offload.VersionMinor), 0}
	}
	if perr != nil {
		return &refusal{unix.EINVAL, "policy", perr.Error(), 0}
	}
	s.mu.Lock()
	total, mine := len(s.sessions), 0
	for _, x := range s.sessions {
		if x.peer.UID == peer.UID {
			mine++
		}
	}
	s.mu.Unlock()
	if total >= s.cfg.MaxSessions {
		return &refusal{unix.EUSERS, "limit", fmt.Sprintf("all %d sessions are taken", s.cfg.MaxSessions), 0}
	}
	if peer.UID != 0 && mine >= s.cfg.MaxPerUser {
		return &refusal{unix.EUSERS, "limit", fmt.Sprintf("user %d has all its %d sessions", peer.UID, s.cfg.MaxPerUser), 0}
	}
	if !s.link.WaitUp(ctx, s.cfg.DPUWait) {
		if st := s.link.Status(); st.State == control.Refused {
			return &refusal{unix.EPROTONOSUPPORT, "version", st.LastError, 0}
		}
		return &refusal{unix.ENETDOWN, "no_dpu", "no DPU: " + s.link.Status().LastError, 0}
	}
	return nil
}

// open makes a new session, and settles what the same process had before.
func (s *Server) open(ctx context.Context, peer attach.Peer, name string, pol *policy.Policy, token string) (*opening, error) {
	s.mu.Lock()
	for _, x := range s.sessions {
		if x.peer.PID == peer.PID {
			s.keepLocked(x) // exec, seen here before the end of the old connection
		}
	}
	s.mu.Unlock()
	if token == "" {
		s.leaveGrants(ctx, peer)
	}
	o, err := s.newSession(ctx, peer, name, s.mayBeTransparent(peer.PID, name, pol), 0)
	if err != nil {
		return nil, err
	}
	if token != "" {
		if err := s.adopt(ctx, o.session, token); err != nil {
			o.closeFDs()
			s.end(o.session, endFailed)
			return nil, err
		}
	}
	s.mu.Lock()
	s.stats.attaches++
	s.stats.channels++
	s.mu.Unlock()
	return o, nil
}

func (s *Server) welcome(o *opening, pol *policy.Policy) *attach.Welcome {
	l := o.layout
	w := &attach.Welcome{
		Session: o.id, TotalSize: l.TotalSize(), ChannelStride: l.ChannelStride(), Features: o.features,
		H2DSize: l.H2DSize, D2HSize: l.D2HSize, Channels: uint32(l.Channels), Shards: uint32(l.Shards),
		RxWindow: l.RxWindow, TxWindow: l.TxWindow, SpinNanos: s.cfg.SpinNanos, ABIMinor: offload.VersionMinor,
	}
	if o.foreign {
		w.Features |= offload.FeatureForeign
	}
	c := pol.Compile(o.name)
	w.DefaultAction = uint8(c.Default)
	w.NRules = uint32(len(c.Rules))
	for i, r := range c.Rules {
		w.Rules[i] = wireRule(r)
	}
	return w
}

func wireRule(r policy.CompiledRule) attach.Rule {
	out := attach.Rule{Action: uint8(r.Action), Ops: attach.RuleListen | attach.RuleConnect, Proto: uint8(r.Proto),
		PortLo: r.Target.PortLo, PortHi: r.Target.PortHi, ID: uint32(r.Line)}
	switch r.Op {
	case policy.Listen:
		out.Ops = attach.RuleListen
	case policy.Connect:
		out.Ops = attach.RuleConnect
	}
	if p := r.Target.Prefix; p.IsValid() {
		out.Family, out.Prefix = 6, uint8(p.Bits())
		if p.Addr().Is4() {
			out.Family = 4
		}
		copy(out.Addr[:], p.Addr().AsSlice())
	}
	return out
}

// serveSession reads a process's messages until the connection ends. When the
// process has ended before it, a child may still say FORKED here.
func (s *Server) serveSession(ctx context.Context, c *attach.Conn, x *session) {
	s.mu.Lock()
	x.conn = c
	ended := x.ended
	s.mu.Unlock()
	if ended {
		_ = c.SetReadDeadline(time.Now().Add(orphanGrace))
	}
	for {
		p, err := c.Recv()
		if err != nil {
			s.connEnded(c, x, err)
			return
		}
		err = s.request(ctx, c, x, p)
		p.Close()
		if err != nil {
			s.connEnded(c, x, err)
			return
		}
	}
}

func (s *Server) connEnded(c *attach.Conn, x *session, err error) {
	if s.ctxDone() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	current := x.conn == c
	if current {
		x.conn = nil
	}
	switch {
	case x.ended || !current: // the process has connected anew
	case errors.Is(err, attach.ErrMessage):
		s.stats.protocolErrors++
		s.bad.warn(x.peer.UID, "process broke the attach protocol", "session", x.id, "pid", x.peer.PID, "reason", err)
		s.endLocked(x, endProtocol)
	default:
		if !errors.Is(err, io.EOF) {
			s.bad.warn(x.peer.UID, "attach connection failed", "session", x.id, "pid", x.peer.PID, "reason", err)
		}
		s.keepLocked(x)
	}
}

// request answers one message. An error ends the connection.
func (s *Server) request(ctx context.Context, c *attach.Conn, x *session, p *attach.Packet) error {
	if m, ok := p.Msg.(*attach.Forked); ok {
		s.forked(x, m, p.Sender)
		return nil
	}
	s.mu.Lock()
	ended := x.ended
	s.mu.Unlock()
	if ended {
		return io.EOF
	}
	switch m := p.Msg.(type) {
	case *attach.ChannelOpen:
		return s.openChannel(ctx, c, x, int(m.Channel), p.ID)
	case *attach.RegisterSocket:
		proven, err := proof(p, m.Cookie)
		if err != nil {
			return err
		}
		if m.Kind != attach.SockConn {
			errno := s.register(x, m)
			if errno == 0 && proven && m.Token != [attach.TokenLen]byte{} {
				s.parkFile(x, m, p.FDs[0])
			}
			return s.ack(c, p.ID, errno)
		}
		if !proven || len(p.FDs) != 2 {
			return fmt.Errorf("a connection without its pair of sockets: %w", attach.ErrMessage)
		}
		return s.ack(c, p.ID, s.park(x, m, p.FDs[1]))
	case *attach.UnregisterSocket:
		return s.ack(c, p.ID, s.unregister(x, m.Cookie))
	case *attach.LookupSocket:
		proven, err := proof(p, m.Cookie)
		if err != nil {
			return err
		}
		row, errno := s.lookup(ctx, x, m.Cookie, proven)
		if errno != 0 {
			return s.refuseRequest(c, p.ID, errno, "no session holds this socket")
		}
		return s.send(c, &attach.Socket{Cookie: m.Cookie, SocketInfo: row}, p.ID)
	case *attach.Ready:
		s.imageReady(x)
		return s.ack(c, p.ID, 0)
	}
	return fmt.Errorf("a %T is not for hostd: %w", p.Msg, attach.ErrMessage)
}

// proof checks the socket that may come with a message about its cookie.
func proof(p *attach.Packet, cookie uint64) (bool, error) {
	if len(p.FDs) == 0 {
		return false, nil
	}
	if cookieOf(p.FDs[0]) != cookie {
		return false, fmt.Errorf("the socket has not the cookie %d: %w", cookie, attach.ErrMessage)
	}
	return true, nil
}

func (s *Server) ack(c *attach.Conn, id uint32, errno unix.Errno) error {
	return s.send(c, &attach.Ack{Err: int32(errno)}, id)
}

func (s *Server) refuseRequest(c *attach.Conn, id uint32, errno unix.Errno, text string) error {
	m := &attach.Refused{Err: int32(errno)}
	attach.SetText(m.Text[:], text)
	return s.send(c, m, id)
}

// openChannel makes the interrupt of one more channel. Asked again for an open
// channel it makes a new one.
func (s *Server) openChannel(ctx context.Context, c *attach.Conn, x *session, n int, id uint32) error {
	if n >= x.layout.Channels {
		return s.refuseRequest(c, id, unix.EINVAL, fmt.Sprintf("channel %d, the session has %d", n, x.layout.Channels))
	}
	fd, err := newEvent()
	if err != nil {
		return s.refuseRequest(c, id, unix.EMFILE, err.Error())
	}
	defer unix.Close(fd)
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0) // the session may end while fd is being sent
	if err != nil {
		return s.refuseRequest(c, id, unix.EMFILE, err.Error())
	}
	if _, err := s.ask(ctx, &offload.Control{Type: offload.CtlChannelOpen, Session: x.id, Channel: n}, fd); err != nil {
		unix.Close(own)
		return s.refuseRequest(c, id, openErrno(err), err.Error())
	}
	s.setInterrupt(x, n, own)
	return s.send(c, &attach.Channel{Channel: uint32(n)}, id, fd)
}

// setInterrupt takes fd over.
func (s *Server) setInterrupt(x *session, n, fd int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if x.ended {
		unix.Close(fd)
		return
	}
	if x.intr[n] >= 0 {
		unix.Close(x.intr[n])
	}
	x.intr[n] = fd
	s.stats.channels++
	s.saveSession(x)
	if x.lost {
		raise(fd)
	}
}

// imageReady ends the sessions of the images that this one replaced.
func (s *Server) imageReady(x *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, old := range s.sessions {
		if old != x && old.kept != nil && old.peer.PID == x.peer.PID {
			s.endLocked(old, endExec)
		}
	}
}

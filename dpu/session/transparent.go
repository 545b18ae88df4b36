// SPDX-License-Identifier: Apache-2.0

package session

import (
	"net/netip"
	"syscall"

	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"pno/dpu/netstack"
	"pno/offload"
)

// Linux's numbers of IP_TRANSPARENT and IPV6_TRANSPARENT.
const (
	ipTransparent   = 19
	ipv6Transparent = 75
)

func isTransparent(level, name uint32) bool {
	return level == syscall.IPPROTO_IP && name == ipTransparent ||
		level == syscall.IPPROTO_IPV6 && name == ipv6Transparent
}

// foreign tells whether an address is not the DPU's.
func (t *Table) foreign(a netip.Addr) bool {
	return a.IsValid() && !a.IsUnspecified() && !t.Stack.IsLocal(a)
}

// stackOf is the stack in which a socket at a local address lives.
func (t *Table) stackOf(a netip.Addr) (*netstack.Stack, syscall.Errno) {
	if !t.foreign(a) {
		return t.Stack, 0
	}
	st, err := t.Stack.Foreign()
	if err != nil {
		t.Log.Error("no stack for foreign addresses", "shard", t.Shard, "err", err)
		return nil, syscall.EADDRNOTAVAIL
	}
	return st, 0
}

// mayBind decides about a local address, as Linux does: one that is not the
// DPU's wants a transparent socket, which is for sessions that the agent
// vouched for, or one with free bind, which will not hear from the wire.
func (t *Table) mayBind(ss *Session, a netip.Addr, flags uint32) syscall.Errno {
	transparent := flags&offload.BindTransparent != 0
	switch {
	case transparent && !ss.proc.Transparent:
		return syscall.EPERM
	case t.foreign(a) && !transparent && flags&offload.BindFree == 0:
		return syscall.EADDRNOTAVAIL
	}
	return 0
}

// optTransparent handles IP_TRANSPARENT of a socket that exists.
func (t *Table) optTransparent(h *hold, on bool) syscall.Errno {
	if on && !h.s.proc.Transparent {
		return syscall.EPERM
	}
	return t.setTransparent(h.sock, on)
}

// setTransparent lets a socket hear what is sent to addresses that are not the
// DPU's, if it is one that listens, or no longer.
func (t *Table) setTransparent(s *socket, on bool) syscall.Errno {
	if s.transparent == on {
		return 0
	}
	s.transparent = on
	if s.kind != bound && s.kind != listening {
		return 0
	}
	if s.stack != t.Stack {
		t.Stack.SetTransparent(s.ep, on)
		return 0
	}
	if !on {
		t.closeTwin(s)
		return 0
	}
	if s.kind == listening {
		return t.listenTwin(s, s.l.backlog)
	}
	return 0
}

// listenTwin has a transparent listener on every address hear for the foreign
// ones too, or sets its backlog there.
func (t *Table) listenTwin(s *socket, backlog int) syscall.Errno {
	local, _ := s.addrs()
	if !s.transparent || s.stack != t.Stack || !local.Addr().IsUnspecified() {
		return 0
	}
	if s.twin == nil {
		if errno := t.makeTwin(s, local); errno != 0 {
			return errno
		}
	}
	return netstack.Errno(s.twin.Listen(backlog))
}

func (t *Table) makeTwin(s *socket, local netip.AddrPort) syscall.Errno {
	st, err := t.Stack.Foreign()
	if err != nil {
		t.Log.Error("no stack for foreign addresses", "shard", t.Shard, "err", err)
		return syscall.ENOBUFS
	}
	ep, terr := st.NewEndpoint(tcp.ProtocolNumber, netstack.NetProto(local.Addr()), s.wq)
	if terr != nil {
		return netstack.Errno(terr)
	}
	from, to := s.ep.SocketOptions(), ep.SocketOptions()
	to.SetReuseAddress(from.GetReuseAddress())
	to.SetReusePort(from.GetReusePort())
	to.SetV6Only(from.GetV6Only())
	if terr := ep.Bind(netstack.Full(local)); terr != nil {
		ep.Close()
		return netstack.Errno(terr)
	}
	s.twin = ep
	t.Stack.SetTransparent(ep, true)
	if s.l != nil {
		for i := range s.l.opts {
			o := &s.l.opts[i]
			netstack.SetOption(ep, s.v6, o.Level, o.Name, o.Val[:o.Len])
		}
	}
	return 0
}

// closeTwin ends what a socket has besides its endpoint in the foreign stack.
func (t *Table) closeTwin(s *socket) {
	if s.stack != t.Stack {
		t.Stack.SetTransparent(s.ep, false)
	}
	if s.twin == nil {
		return
	}
	t.Stack.SetTransparent(s.twin, false)
	s.twin.Close()
	s.twin = nil
}

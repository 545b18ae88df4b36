// SPDX-License-Identifier: Apache-2.0

package session

import (
	"math/rand/v2"
	"net/netip"
	"syscall"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/ports"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"pno/dpu/netstack"
	"pno/offload"
)

// portTries bounds the search for a free local port. Each try is a look-up;
// the first one nearly always succeeds.
const portTries = 4096

// connect handles Connect.
func (t *Table) connect(q *queue, rec offload.Record, payload []byte) string {
	req, err := offload.GetConnectReq(payload)
	switch {
	case err != nil:
		return "short connect request"
	case side(rec.Sock) == 0:
		return "connect on a handle of the DPU's"
	}
	h := q.s.handles.get(rec.Sock)
	if req.Proto == offload.ProtoUDP {
		return t.connectUDP(q, rec, h, req)
	}
	if h != nil && h.sock.kind != bound {
		return "connect on a handle in use"
	}
	errno := t.connectCheck(q, req)
	var s *socket
	switch {
	case errno != 0:
	case h != nil:
		s = h.sock
		if local, _ := s.addrs(); local.Addr().IsUnspecified() || !local.Addr().IsValid() {
			req.Local = offload.Addr{Family: req.Peer.Family, Port: local.Port()}
		} else {
			req.Local = offload.AddrFrom(local)
		}
		errno = t.connectFrom(s, req, true)
	default:
		s, errno = t.connectNew(q.s, req)
	}
	if errno != 0 {
		if errno&offload.ErrnoRedirect != 0 {
			t.stats.redirects++
		} else {
			t.stats.connectFailed++
		}
		t.post(q, offload.OpError, rec.Sock, errno, 0, nil)
		return ""
	}
	if h == nil {
		if h = t.hold(q.s, s, rec.Sock); h == nil {
			t.destroy(s, false)
			return "connect on a slot in use"
		}
	}
	s.kind, s.at, s.home = connecting, h, q
	t.service(s) // the loopback may be done already
	return ""
}

func (t *Table) connectCheck(q *queue, req offload.ConnectReq) uint32 {
	switch {
	case req.Peer.Family != 4 && req.Peer.Family != 6,
		req.Local.Family != 0 && req.Local.Family != req.Peer.Family:
		return uint32(syscall.EAFNOSUPPORT)
	case req.Proto != offload.ProtoTCP:
		return uint32(syscall.EPROTONOSUPPORT)
	case toMany(req.Peer.AddrPort().Addr()):
		return uint32(syscall.ENETUNREACH)
	case q.s.handles.count >= maxSockets:
		return uint32(syscall.ENFILE)
	}
	return 0
}

// toMany says if an address is that of a group, or of all: no peer of a
// connection.
func toMany(a netip.Addr) bool {
	return a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// hostItself is the address that is meant: Linux takes the unspecified one, as
// a destination, for the host itself.
func hostItself(p netip.AddrPort) netip.AddrPort {
	if !p.Addr().IsUnspecified() {
		return p
	}
	if p.Addr().Is6() {
		return netip.AddrPortFrom(netip.IPv6Loopback(), p.Port())
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), p.Port())
}

// fromLocal is where a connection to an address of our own comes from, if the
// stack should not choose: Linux reaches all of 127.0.0.0/8 from 127.0.0.1.
func fromLocal(peer netip.Addr) netip.AddrPort {
	home := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	if !peer.IsLoopback() || !peer.Is4() || peer == home {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(home, 0)
}

// connectNew makes a socket and connects it, from a local port that brings
// the replies to this shard unless the host named one.
func (t *Table) connectNew(ss *Session, req offload.ConnectReq) (*socket, uint32) {
	peer := hostItself(req.Peer.AddrPort())
	local := req.Local.AddrPort()
	if local.IsValid() {
		if errno := t.mayBind(ss, local.Addr(), req.Flags); errno != 0 {
			return nil, uint32(errno)
		}
	}
	if !local.Addr().IsValid() || local.Addr().IsUnspecified() {
		src, err := t.Stack.Source(peer.Addr())
		if err != nil {
			return nil, uint32(netstack.Errno(err))
		}
		local = netip.AddrPortFrom(src, local.Port())
	}
	st, no := t.stackOf(local.Addr())
	if no != 0 {
		return nil, uint32(no)
	}
	if local.Port() != 0 {
		return t.connectOnce(st, req, local)
	}
	if t.Stack.IsLocal(peer.Addr()) {
		if t.foreign(local.Addr()) {
			return nil, uint32(syscall.EHOSTUNREACH) // the reply would go astray
		}
		if req.Local.Family == 0 || req.Local.AddrPort().Addr().IsUnspecified() {
			local = fromLocal(peer.Addr())
		}
		return t.connectOnce(st, req, local)
	}
	seed := rand.Uint32()
	for try := range portTries {
		port, ok := t.RSS.Port(local.Addr(), peer, t.Shard, seed, try)
		if !ok {
			break
		}
		from := netip.AddrPortFrom(local.Addr(), port)
		if t.taken(st, from, peer) {
			continue
		}
		s, errno := t.connectOnce(st, req, from)
		if errno == uint32(syscall.EADDRINUSE) || errno == uint32(syscall.EADDRNOTAVAIL) {
			continue
		}
		return s, errno
	}
	return nil, uint32(syscall.EADDRNOTAVAIL)
}

// taken tells whether a stack has a connection with these addresses.
func (t *Table) taken(st *netstack.Stack, local, peer netip.AddrPort) bool {
	proto := netstack.NetProto(peer.Addr())
	id := stack.TransportEndpointID{
		LocalPort: local.Port(), LocalAddress: netstack.Address(local.Addr()),
		RemotePort: peer.Port(), RemoteAddress: netstack.Address(peer.Addr()),
	}
	return st.CheckRegisterTransportEndpoint([]tcpip.NetworkProtocolNumber{proto}, tcp.ProtocolNumber,
		id, ports.Flags{TupleOnly: true}, 0) != nil
}

// connectOnce makes a socket, binds it unless local is invalid, and connects.
func (t *Table) connectOnce(st *netstack.Stack, req offload.ConnectReq, local netip.AddrPort) (*socket, uint32) {
	ep, wq, err := newEndpoint(st, req.Peer.Family == 6)
	if err != nil {
		return nil, uint32(netstack.Errno(err))
	}
	if local.IsValid() {
		o := ep.SocketOptions()
		// Many connections share a local port as long as the peers differ:
		// gVisor has that under this name for bound sockets.
		o.SetReuseAddress(req.Local.Port == 0 || req.Flags&offload.BindReuseAddr != 0)
		o.SetReusePort(req.Flags&offload.BindReusePort != 0)
		to := netstack.Full(local)
		if st != t.Stack {
			to = st.LocalTowards(local, req.Peer.AddrPort().Addr())
		}
		if err := ep.Bind(to); err != nil {
			ep.Close()
			return nil, uint32(netstack.Errno(err))
		}
	}
	s := t.newSocket(st, ep, wq, bound, req.Peer.Family == 6)
	s.transparent = req.Flags&offload.BindTransparent != 0
	if errno := t.connectFrom(s, req, req.Local.Port != 0); errno != 0 {
		t.destroy(s, false)
		return nil, errno
	}
	return s, 0
}

// connectFrom starts the handshake of a socket. With explicit set the host
// chose the local port, whose flows may belong to another shard.
func (t *Table) connectFrom(s *socket, req offload.ConnectReq, explicit bool) uint32 {
	peer := hostItself(req.Peer.AddrPort())
	if s.stack != t.Stack && !s.transparent {
		return uint32(syscall.ENETUNREACH) // IP_FREEBIND is for listening
	}
	if explicit && !t.Stack.IsLocal(peer.Addr()) && t.RSS.Shards() > 1 {
		local := req.Local.AddrPort()
		if local.Addr().IsUnspecified() {
			src, err := t.Stack.Source(peer.Addr())
			if err != nil {
				return uint32(netstack.Errno(err))
			}
			local = netip.AddrPortFrom(src, local.Port())
		}
		if n := t.RSS.Shard(local, peer); n != t.Shard {
			return offload.ErrnoRedirect | uint32(n)
		}
	}
	switch err := s.ep.Connect(netstack.Full(peer)).(type) {
	case nil, *tcpip.ErrConnectStarted:
		return 0
	default:
		return uint32(netstack.Errno(err))
	}
}

// connectDone looks whether a handshake has ended.
func (t *Table) connectDone(s *socket) {
	switch st := s.state(); st {
	case tcp.StateConnecting, tcp.StateSynSent, tcp.StateSynRecv:
		return
	case tcp.StateError, tcp.StateClose:
		errno := uint32(netstack.Errno(s.ep.LastError()))
		if errno == 0 {
			errno = uint32(syscall.ECONNRESET)
		}
		s.kind, s.errno = dead, errno
		t.stats.connectFailed++
		if s.at != nil {
			t.post(s.home, offload.OpError, s.at.handle, errno, 0, nil)
		}
		return
	}
	s.kind = connected
	s.stack.Track(s.ep, nil)
	t.stats.connected++
	if s.at != nil {
		var b [offload.AddrPairSize]byte
		s.pair().Put(b[:])
		t.post(s.home, offload.OpConnected, s.at.handle, 0, 0, b[:])
	}
	t.service(s)
}

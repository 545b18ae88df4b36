// SPDX-License-Identifier: Apache-2.0

package dpu_test

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"

	"pno/dpu/netstack"
	"pno/dpu/report"
	"pno/offload"
)

// dgram is a datagram that the host has received.
type dgram struct {
	offload.Dgram
	data []byte
}

// datagrams is what a socket of UDP has besides.
type datagrams struct {
	frame  []byte // of a datagram, up to here
	dgrams []dgram
}

// takeDgram puts the records of a datagram together.
func (s *hsock) takeDgram(rec offload.Record, payload []byte) {
	if rec.Seq != uint32(s.rxEnd) {
		s.h.err = fmt.Errorf("datagram at %d, want %d", rec.Seq, uint32(s.rxEnd))
	}
	s.rxEnd += uint64(len(payload))
	s.ack(rec.Ack)
	s.frame = append(s.frame, payload...)
	if rec.Flags&offload.FlagPart != 0 {
		return
	}
	d, err := offload.GetDgram(s.frame)
	if err != nil || int(d.Len) != len(s.frame)-offload.DgramSize {
		s.h.err = fmt.Errorf("datagram of %d bytes in a frame of %d: %v", d.Len, len(s.frame), err)
		return
	}
	s.dgrams = append(s.dgrams, dgram{d, s.frame[offload.DgramSize:]})
	s.frame = nil
}

// udp makes a datagram socket: bound to local, or connected to peer, or both.
func (h *host) udp(shard int, local, peer string, flags uint32) (*hsock, uint32) {
	h.t.Helper()
	s := &hsock{h: h, shard: shard, handle: h.handle()}
	h.do(func() { h.socks[sockKey{shard, s.handle}] = s })
	if peer != "" {
		return s, s.connectUDP(peer, local)
	}
	b := make([]byte, offload.BindReqSize)
	offload.BindReq{Local: offload.AddrFrom(netip.MustParseAddrPort(local)), Proto: offload.ProtoUDP, Flags: flags}.Put(b)
	return s, s.named(h.request(shard, offload.OpBind, s.handle, 0, b))
}

func (s *hsock) connectUDP(peer, local string) uint32 {
	req := offload.ConnectReq{Proto: offload.ProtoUDP}
	if peer != "" {
		req.Peer = offload.AddrFrom(netip.MustParseAddrPort(peer))
	}
	if local != "" {
		req.Local = offload.AddrFrom(netip.MustParseAddrPort(local))
	}
	b := make([]byte, offload.ConnectReqSize)
	req.Put(b)
	return s.named(s.h.request(s.shard, offload.OpConnect, s.handle, 0, b))
}

func (s *hsock) named(a answer) uint32 {
	if a.errno != 0 {
		return a.errno
	}
	i, err := offload.GetDgramInfo(a.payload)
	if err != nil || i.MTU == 0 {
		s.h.t.Errorf("info %+v, %v", i, err)
	}
	s.pair = offload.AddrPair{Local: i.Local, Peer: i.Peer}
	return 0
}

// sendTo sends a datagram, in as many records as it takes.
func (s *hsock) sendTo(d offload.Dgram, data []byte) {
	s.h.t.Helper()
	d.Len = uint32(len(data))
	frame := make([]byte, offload.DgramSize, offload.DgramSize+len(data))
	d.Put(frame)
	frame = append(frame, data...)
	s.h.do(func() {
		for len(frame) > 0 {
			n, flags := min(len(frame), offload.MaxPayload), uint8(0)
			if n < len(frame) {
				flags = offload.FlagPart
			}
			if !s.emit(offload.OpSendDgram, flags, uint32(s.tx), uint32(s.consumed), frame[:n]) {
				s.h.t.Error("ring full")
			}
			s.tx += uint64(n)
			frame = frame[n:]
		}
	})
}

func toAddr(a string) offload.Addr { return offload.AddrFrom(netip.MustParseAddrPort(a)) }

// recvFrom takes the next datagram and reports it consumed.
func (s *hsock) recvFrom() (d dgram) {
	s.h.t.Helper()
	s.h.until("datagram", func() bool {
		if len(s.dgrams) == 0 {
			return false
		}
		d, s.dgrams = s.dgrams[0], s.dgrams[1:]
		s.consumed += uint64(offload.DgramSize + len(d.data))
		return s.emit(offload.OpRxAck, 0, 0, uint32(s.consumed), nil)
	})
	return d
}

func (r *remote) udp(t testing.TB, local, peer string) *gonet.UDPConn {
	t.Helper()
	ap := netip.MustParseAddrPort(local)
	l := netstack.Full(ap)
	if ap.Addr().IsValid() {
		l.Addr = netstack.Address(ap.Addr())
	}
	proto := netstack.NetProto(ap.Addr())
	var c *gonet.UDPConn
	var err error
	if peer == "" {
		c, err = gonet.DialUDP(r.s.Stack, &l, nil, proto)
	} else {
		p := netstack.Full(netip.MustParseAddrPort(peer))
		c, err = gonet.DialUDP(r.s.Stack, &l, &p, proto)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	return c
}

func readFrom(t testing.TB, c *gonet.UDPConn) (string, net.Addr) {
	t.Helper()
	b := make([]byte, 70000)
	n, from, err := c.ReadFrom(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n]), from
}

func counted(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i * 7 >> 3)
	}
	return b
}

func TestUDPEcho(t *testing.T) {
	for _, c := range []struct{ name, dpu, remote string }{
		{"IPv4", dpuAddr, remoteAddr},
		{"IPv6", "[2001:2::2]", "[2001:2::9]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, rigOptions{})
			h := newHost(t, r.agent, testLayout(1))
			s, errno := h.udp(0, c.dpu+":5300", "", 0)
			if errno != 0 {
				t.Fatal(errno)
			}
			peer := r.remote.udp(t, c.remote+":6000", c.dpu+":5300")
			for _, n := range []int{0, 1, 1400, 1500, 9000, 40000, 60000} {
				want := counted(n)
				if _, err := peer.Write(want); err != nil {
					t.Fatal(err)
				}
				d := s.recvFrom()
				if !bytes.Equal(d.data, want) || d.Peer != toAddr(c.remote+":6000") || d.Local != toAddr(c.dpu+":5300") ||
					d.Flags != offload.DgramTOS|offload.DgramTTL || d.TTL == 0 || d.Index != 2 {
					t.Fatalf("datagram of %d bytes: %d bytes, %+v", n, len(d.data), d.Dgram)
				}
				if n > 49000 {
					continue // the test's window is 64 KiB
				}
				s.sendTo(offload.Dgram{Peer: d.Peer, Local: d.Local}, d.data)
				if got, from := readFrom(t, peer); got != string(want) || from.String() != c.dpu+":5300" {
					t.Fatalf("answer of %d bytes from %s", len(got), from)
				}
			}
			h.until("the report that all is read", func() bool {
				st := r.d.Sockets()
				return len(st) == 1 && st[0].Kind == "datagram" && st[0].State == "UNCONN" && st[0].RxUnread == 0 && st[0].Dropped == 0
			})
		})
	}
}

// What is not a datagram's own is the socket's.
func TestUDPMarks(t *testing.T) {
	r := newRig(t, rigOptions{})
	h := newHost(t, r.agent, testLayout(1))
	a, _ := h.udp(0, dpuAddr+":1000", "", 0)
	b, _ := h.udp(0, "127.0.0.1:1001", "", 0)
	o := offload.OptVal{Level: syscall.IPPROTO_IP, Name: syscall.IP_TOS, Len: 4}
	o.Val[0] = 0x20
	var ov [offload.OptValSize]byte
	o.Put(ov[:])
	if e := h.request(0, offload.OpSetOpt, a.handle, 0, ov[:]); e.errno != 0 {
		t.Fatal(e.errno)
	}
	b2, _ := h.udp(0, "0.0.0.0:1002", "", 0)
	a.sendTo(offload.Dgram{Peer: toAddr(dpuAddr + ":1002")}, []byte("own"))
	if d := b2.recvFrom(); d.TOS != 0x20 || d.TTL != 64 || string(d.data) != "own" {
		t.Errorf("%+v", d)
	}
	a.sendTo(offload.Dgram{Peer: toAddr(dpuAddr + ":1002"), Flags: offload.DgramTOS | offload.DgramTTL, TOS: 4, TTL: 9}, nil)
	if d := b2.recvFrom(); d.TOS != 4 || d.TTL != 9 || len(d.data) != 0 {
		t.Errorf("%+v", d)
	}
	// One frame, several datagrams.
	a.sendTo(offload.Dgram{Peer: toAddr(dpuAddr + ":1002"), Segment: 100}, counted(250))
	var got []int
	for range 3 {
		got = append(got, len(b2.recvFrom().data))
	}
	if !slices.Equal(got, []int{100, 100, 50}) {
		t.Errorf("segments %v", got)
	}
	// The source address of the host's choice.
	b2.sendTo(offload.Dgram{Peer: toAddr("127.0.0.1:1001"), Local: toAddr("127.0.0.7:0")}, []byte("x"))
	if d := b.recvFrom(); d.Peer != toAddr("127.0.0.7:1002") {
		t.Errorf("from %v", d.Peer.AddrPort())
	}
	b2.sendTo(offload.Dgram{Peer: toAddr("127.0.0.1:1001"), Local: toAddr("198.18.0.77:0")}, []byte("not ours"))
	h.until("the count of what was not sent", func() bool { return r.d.Stats().Sockets.DgramsUnsent == 1 })
	h.until("the reason", func() bool { return b2.errno == uint32(syscall.EADDRNOTAVAIL) })
}

// Whoever is connected to where nobody listens is told so by ICMP, both ways.
func TestUDPRefused(t *testing.T) {
	r := newRig(t, rigOptions{})
	h := newHost(t, r.agent, testLayout(1))
	for _, to := range []string{remoteAddr + ":7", "[2001:2::9]:7"} {
		s, errno := h.udp(0, "", to, 0)
		if errno != 0 {
			t.Fatal(errno)
		}
		s.sendTo(offload.Dgram{}, []byte("anyone?"))
		h.until("refused by "+to, func() bool { return s.errno == uint32(syscall.ECONNREFUSED) })
	}
	for to, from := range map[string]string{dpuAddr + ":7": remoteAddr + ":0", "[2001:2::2]:7": "[2001:2::9]:0"} {
		c := r.remote.udp(t, from, to)
		var err error
		h.until("refused by "+to, func() bool { // gonet says it with a write
			_, err = c.Write([]byte("anyone?"))
			return err != nil
		})
		if !strings.Contains(err.Error(), "refused") {
			t.Errorf("%s: %v", to, err)
		}
	}
}

func TestUDPConnect(t *testing.T) {
	r := newRig(t, rigOptions{})
	h := newHost(t, r.agent, testLayout(1))
	s, errno := h.udp(0, "", remoteAddr+":6000", 0)
	if errno != 0 || s.pair.Local.AddrPort().Addr().String() != dpuAddr || s.pair.Local.Port < netstack.PortLow || s.pair.Peer != toAddr(remoteAddr+":6000") {
		t.Fatalf("errno %d, %+v", errno, s.pair)
	}
	// Nobody is there yet: the first is refused, and the socket lives on.
	s.sendTo(offload.Dgram{}, []byte("anyone?"))
	h.until("refused", func() bool { return s.errno == uint32(syscall.ECONNREFUSED) })
	peer := r.remote.udp(t, remoteAddr+":6000", "")
	other := r.remote.udp(t, remoteAddr+":6001", "")
	to := net.UDPAddrFromAddrPort(s.pair.Local.AddrPort())
	if _, err := other.WriteTo([]byte("stranger"), to); err != nil {
		t.Fatal(err)
	}
	s.sendTo(offload.Dgram{}, []byte("hello"))
	got, from := readFrom(t, peer)
	if got != "hello" || from.String() != to.String() {
		t.Fatalf("%q from %s", got, from)
	}
	if _, err := peer.WriteTo([]byte("welcome"), from); err != nil {
		t.Fatal(err)
	}
	if d := s.recvFrom(); string(d.data) != "welcome" {
		t.Fatalf("%q", d.data)
	}
	if st := r.d.Sockets(); len(st) != 1 || st[0].State != "ESTAB" || st[0].Peer != remoteAddr+":6000" {
		t.Errorf("%+v", st)
	}
	// Another peer, then none.
	if errno := s.connectUDP(remoteAddr+":6001", ""); errno != 0 {
		t.Fatal(errno)
	}
	s.sendTo(offload.Dgram{}, []byte("to the other"))
	if got, _ := readFrom(t, other); got != "to the other" {
		t.Fatalf("%q", got)
	}
	if errno := s.connectUDP("", ""); errno != 0 || s.pair.Peer.Family != 0 || s.pair.Local.Port != uint16(to.Port) {
		t.Fatalf("errno %d %+v", errno, s.pair)
	}
	if _, err := peer.WriteTo([]byte("open to all"), to); err != nil {
		t.Fatal(err)
	}
	if d := s.recvFrom(); string(d.data) != "open to all" {
		t.Fatalf("%q", d.data)
	}
	if _, errno := h.udp(0, "", "203.0.113.1:53", 0); errno != uint32(syscall.ENETUNREACH) && errno != uint32(syscall.EHOSTUNREACH) {
		t.Errorf("connect without a route: errno %d", errno)
	}
}

func TestUDPBind(t *testing.T) {
	r := newRig(t, rigOptions{})
	h := newHost(t, r.agent, testLayout(1))
	const reuse, spread, only = offload.BindReuseAddr, offload.BindReusePort, offload.BindV6Only
	for _, c := range []struct {
		name   string
		addr   string
		flags  uint32
		second string
		flags2 uint32
		errno  syscall.Errno
	}{
		{"taken", dpuAddr + ":1", 0, dpuAddr + ":1", 0, syscall.EADDRINUSE},
		{"wildcard over one", dpuAddr + ":2", 0, "0.0.0.0:2", 0, syscall.EADDRINUSE},
		{"two addresses", dpuAddr + ":3", 0, "127.0.0.1:3", 0, 0},
		{"reuse address", dpuAddr + ":4", reuse, dpuAddr + ":4", reuse, 0},
		{"reuse port", dpuAddr + ":5", spread, dpuAddr + ":5", spread, 0},
		{"reuse port with one who does not", dpuAddr + ":6", spread, dpuAddr + ":6", 0, syscall.EADDRINUSE},
		{"both families", "[::]:7", 0, "0.0.0.0:7", 0, syscall.EADDRINUSE},
		{"one family each", "[::]:8", only, "0.0.0.0:8", 0, 0},
		{"foreign address", dpuAddr + ":9", 0, "198.18.0.77:9", 0, syscall.EADDRNOTAVAIL},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, errno := h.udp(0, c.addr, "", c.flags); errno != 0 {
				t.Fatal(syscall.Errno(errno))
			}
			if _, errno := h.udp(0, c.second, "", c.flags2); errno != uint32(c.errno) {
				t.Errorf("errno %v, want %v", syscall.Errno(errno), c.errno)
			}
		})
	}
	s, _ := h.udp(0, "0.0.0.0:0", "", 0)
	if p := s.pair.Local.Port; p < netstack.PortLow || p > netstack.PortHigh {
		t.Errorf("chose port %d", p)
	}
}

// A socket on every shard, as the shim opens one: datagrams come wherever the
// hash says, fragments to shard 0, and whichever shard answers.
func TestUDPShards(t *testing.T) {
	r := newRig(t, rigOptions{shards: 2})
	h := newHost(t, r.agent, testLayout(2))
	var legs [2]*hsock
	for i := range legs {
		var errno uint32
		if legs[i], errno = h.udp(i, dpuAddr+":5300", "", 0); errno != 0 {
			t.Fatal(errno)
		}
	}
	const clients = 32
	for i := range clients {
		c := r.remote.udp(t, fmt.Sprintf("%s:%d", remoteAddr, 6000+i), dpuAddr+":5300")
		if _, err := c.Write([]byte{byte(i)}); err != nil {
			t.Fatal(err)
		}
	}
	h.until("all datagrams", func() bool { return len(legs[0].dgrams)+len(legs[1].dgrams) == clients })
	if len(legs[0].dgrams) == 0 || len(legs[1].dgrams) == 0 {
		t.Errorf("not spread: %d and %d", len(legs[0].dgrams), len(legs[1].dgrams))
	}
	c := r.remote.udp(t, remoteAddr+":7000", dpuAddr+":5300")
	if _, err := c.Write(counted(5000)); err != nil {
		t.Fatal(err)
	}
	h.until("the long one", func() bool {
		d := legs[0].dgrams
		return len(d) > 0 && bytes.Equal(d[len(d)-1].data, counted(5000))
	})
	for _, l := range legs {
		l.sendTo(offload.Dgram{Peer: toAddr(remoteAddr + ":7000")}, []byte("here"))
		if got, from := readFrom(t, c); got != "here" || from.String() != dpuAddr+":5300" {
			t.Errorf("%q from %s", got, from)
		}
	}
}

// Who does not read loses datagrams, and holds up nobody.
func TestUDPSlowReader(t *testing.T) {
	r := newRig(t, rigOptions{})
	h := newHost(t, r.agent, testLayout(1))
	lazy, _ := h.udp(0, dpuAddr+":1000", "", 0)
	eager, _ := h.udp(0, dpuAddr+":1001", "", 0)
	flood := r.remote.udp(t, remoteAddr+":6000", dpuAddr+":1000")
	for i := range 600 { // 600 KiB; 64 KiB in the ring, 208 KiB in the socket
		if _, err := flood.Write(append(counted(1000), byte(i), byte(i>>8))); err != nil {
			t.Fatal(err)
		}
		if i%16 == 0 {
			time.Sleep(time.Millisecond)
		}
	}
	ping := r.remote.udp(t, remoteAddr+":6001", dpuAddr+":1001")
	if _, err := ping.Write([]byte("ping")); err != nil {
		t.Fatal(err)
	}
	if d := eager.recvFrom(); string(d.data) != "ping" {
		t.Fatalf("%q", d.data)
	}
	h.until("drops", func() bool {
		for _, s := range r.d.Sockets() {
			if s.Handle == lazy.handle && s.Dropped > 0 && s.Waiting > 0 {
				return true
			}
		}
		return false
	})
	var unread int
	h.do(func() { unread = int(lazy.rxEnd - lazy.consumed) })
	if unread > int(testLayout(1).RxWindow) {
		t.Errorf("%d bytes beyond the window", unread)
	}
	// What it has not lost it gets, in order.
	last := -1
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); {
		d := lazy.recvFrom()
		n := int(d.data[1000]) | int(d.data[1001])<<8
		if n <= last {
			t.Fatalf("datagram %d after %d", n, last)
		}
		last = n
		var more bool
		h.do(func() { more = len(lazy.dgrams) > 0 })
		if st := r.d.Sockets(); !more && st[slices.IndexFunc(st, func(s report.Socket) bool { return s.Handle == lazy.handle })].Waiting == 0 {
			break
		}
	}
	if last < 150 {
		t.Errorf("last datagram %d", last)
	}
}

// A child of a fork takes the socket over, with what nobody has read.
func TestUDPFork(t *testing.T) {
	r := newRig(t, rigOptions{})
	h := newHost(t, r.agent, testLayout(1))
	s, _ := h.udp(0, dpuAddr+":1000", "", 0)
	child := forkOf(t, h, 7)
	peer := r.remote.udp(t, remoteAddr+":6000", dpuAddr+":1000")
	for _, m := range []string{"one", "two", "three"} {
		if _, err := peer.Write([]byte(m)); err != nil {
			t.Fatal(err)
		}
	}
	if d := s.recvFrom(); string(d.data) != "one" {
		t.Fatalf("%q", d.data)
	}
	h.until("the rest", func() bool { return len(s.dgrams) == 2 })
	c := child.sock(s)
	// What is claimed comes at the offset up to which the parent has read.
	child.do(func() { c.rxEnd, c.consumed = offload.DgramSize+3, offload.DgramSize+3 })
	c.claim(0)
	for _, want := range []string{"two", "three"} {
		if d := c.recvFrom(); string(d.data) != want {
			t.Fatalf("%q, want %q", d.data, want)
		}
	}
	h.until("revoked", func() bool { return s.revoked })
	c.sendTo(offload.Dgram{Peer: toAddr(remoteAddr + ":6000")}, []byte("from the child"))
	if got, _ := readFrom(t, peer); got != "from the child" {
		t.Errorf("%q", got)
	}
}

// A process may keep a socket that it never reads, as one that hands it to its
// workers does: what comes is for who has asked.
func TestUDPHandedOver(t *testing.T) {
	r := newRig(t, rigOptions{})
	h := newHost(t, r.agent, testLayout(1))
	s, _ := h.udp(0, dpuAddr+":1000", "", 0)
	first, second := forkOf(t, h, 7), forkOf(t, h, 8)
	a, b := first.sock(s), second.sock(s)
	a.claim(0)
	b.claim(0)
	first.until("revoked", func() bool { return a.revoked })
	b.close(0)
	peer := r.remote.udp(t, remoteAddr+":6000", dpuAddr+":1000")
	if _, err := peer.Write([]byte("to the other")); err != nil {
		t.Fatal(err)
	}
	if d := a.recvFrom(); string(d.data) != "to the other" {
		t.Errorf("%q", d.data)
	}
}

func TestUDPToTheHostItself(t *testing.T) {
	r := newRig(t, rigOptions{})
	h := newHost(t, r.agent, testLayout(1))
	for _, c := range []struct{ to, unspecified string }{{"127.0.0.1", "0.0.0.0"}, {"[::1]", "[::]"}} {
		s, _ := h.udp(0, c.to+":1000", "", 0)
		from, _ := h.udp(0, c.unspecified+":0", "", 0)
		from.sendTo(offload.Dgram{Peer: toAddr(c.unspecified + ":1000")}, []byte("here"))
		if d := s.recvFrom(); string(d.data) != "here" {
			t.Errorf("%s: %q", c.unspecified, d.data)
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

package dpu_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"

	"pno/dpu/netstack"
	"pno/offload"
)

// Nobody on the wire has these; the remote machine reaches them by the DPU.
const (
	foreignAddr  = "192.0.2.7"
	foreignAddr6 = "2001:db8::7"
)

// newForeignRig is a rig whose next session may be transparent or not.
func newForeignRig(t *testing.T, shards int, transparent bool) (*rig, *host) {
	t.Helper()
	r := newRig(t, rigOptions{shards: shards})
	for _, route := range []struct{ to, via string }{{"192.0.2.0/24", dpuAddr}, {"2001:db8::/32", "2001:2::2"}} {
		r.remote.s.AddRoute(tcpip.Route{
			Destination: netstack.Subnet(netip.MustParsePrefix(route.to)),
			Gateway:     netstack.Address(netip.MustParseAddr(route.via)), NIC: 1,
		})
	}
	r.agent.transparent = transparent
	return r, newHost(t, r.agent, testLayout(shards))
}

// A proxy speaks to its servers from its clients' addresses: the replies come
// to the shard that asked, whichever that is.
func TestConnectFromForeignAddress(t *testing.T) {
	r, h := newForeignRig(t, 3, true)
	for _, c := range []struct{ listen, from, bracketed string }{
		{remoteAddr + ":80", foreignAddr, foreignAddr},
		{"[2001:2::9]:80", foreignAddr6, "[" + foreignAddr6 + "]"},
	} {
		l := r.remote.listen(t, c.listen)
		for n := range 30 {
			s := h.connectWith(n%3, c.listen, c.bracketed+":0", offload.BindTransparent)
			if s.errno != 0 {
				t.Fatalf("connect %d from %s: errno %d", n, c.from, s.errno)
			}
			peer, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			if host, _, _ := net.SplitHostPort(peer.RemoteAddr().String()); host != c.from {
				t.Fatalf("the server sees %s, want %s", peer.RemoteAddr(), c.from)
			}
			if n < 3 {
				bulk(t, s, peer, 1<<18)
			}
			s.close(0)
			_ = peer.Close()
		}
	}
	// A port that the host chose belongs to one shard; the others say which.
	l := r.remote.listen(t, remoteAddr+":81")
	for port := 5000; port < 5010; port++ {
		from := fmt.Sprintf("%s:%d", foreignAddr, port)
		s := h.connectWith(0, remoteAddr+":81", from, offload.BindTransparent)
		if s.errno&offload.ErrnoRedirect != 0 {
			s = h.connectWith(int(s.errno&0xff), remoteAddr+":81", from, offload.BindTransparent)
		}
		if s.errno != 0 {
			t.Fatalf("connect from %s: errno %#x", from, s.errno)
		}
		peer, err := l.Accept()
		if err != nil || peer.RemoteAddr().String() != from {
			t.Fatalf("the server sees %v (%v), want %s", peer.RemoteAddr(), err, from)
		}
		s.close(0)
		_ = peer.Close()
	}
	// And nobody was told that the addresses are the DPU's.
	for _, proto := range []tcpip.NetworkProtocolNumber{netstack.NetProto(netip.MustParseAddr(foreignAddr)), netstack.NetProto(netip.MustParseAddr(foreignAddr6))} {
		entries, err := r.remote.s.Neighbors(1, proto)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if a := netstack.Addr(e.Addr).String(); a == foreignAddr || a == foreignAddr6 {
				t.Errorf("the remote machine has %s as a neighbour", a)
			}
		}
	}
}

// A transparent listener takes connections to any destination; others do not,
// and nobody answers in their place.
func TestListenForForeignAddress(t *testing.T) {
	r, h := newForeignRig(t, 1, true)
	every := h.listenWith(0, "0.0.0.0:80", offload.BindReuseAddr|offload.BindTransparent)
	h.listenWith(0, "0.0.0.0:81", offload.BindReuseAddr)
	one := h.listenWith(0, foreignAddr+":82", offload.BindReuseAddr|offload.BindTransparent)
	h.listenWith(0, foreignAddr+":83", offload.BindReuseAddr|offload.BindFree)
	six := h.listenWith(0, "["+foreignAddr6+"]:84", offload.BindReuseAddr|offload.BindTransparent)
	dial := func(addr string, wait time.Duration) (net.Conn, error) {
		ap := netip.MustParseAddrPort(addr)
		ctx, cancel := context.WithTimeout(t.Context(), wait)
		defer cancel()
		return gonet.DialContextTCP(ctx, r.remote.s.Stack, netstack.Full(ap), netstack.NetProto(ap.Addr()))
	}
	for _, c := range []struct {
		addr string
		l    *hsock
	}{{dpuAddr + ":80", every}, {foreignAddr + ":80", every}, {"192.0.2.200:80", every}, {foreignAddr + ":82", one}, {"[" + foreignAddr6 + "]:84", six}} {
		conn, err := dial(c.addr, 10*time.Second)
		if err != nil {
			t.Errorf("connection to %s: %v", c.addr, err)
			continue
		}
		s := c.l.accept()
		if got := s.pair.Local.AddrPort().String(); got != c.addr {
			t.Errorf("connection to %s came as one to %s", c.addr, got)
		}
		bulk(t, s, conn, 1<<16)
		_ = conn.Close()
	}
	for _, addr := range []string{foreignAddr + ":81", "192.0.2.200:82", foreignAddr + ":83", foreignAddr + ":99"} {
		conn, err := dial(addr, 300*time.Millisecond)
		if err == nil {
			_ = conn.Close()
		}
		if err != context.DeadlineExceeded {
			t.Errorf("connection to %s: %v, want no answer", addr, err)
		}
	}
	// The listener's own life goes on, and its end is its end.
	if conn, err := dial(dpuAddr+":81", 5*time.Second); err != nil {
		t.Errorf("connection to an own address: %v", err)
	} else {
		_ = conn.Close()
	}
	every.close(0)
	h.until("the listener's end", func() bool {
		conn, err := dial(foreignAddr+":80", 200*time.Millisecond)
		if err == nil {
			_ = conn.Close()
		}
		return err == context.DeadlineExceeded
	})
}

// What a process says of its rights does not count, only what the agent says.
func TestForeignAddressNeedsAGrant(t *testing.T) {
	_, h := newForeignRig(t, 1, false)
	for _, c := range []struct {
		name, addr string
		flags      uint32
		want       syscall.Errno
	}{
		{"foreign", foreignAddr + ":80", 0, syscall.EADDRNOTAVAIL},
		{"transparent", foreignAddr + ":80", offload.BindTransparent, syscall.EPERM},
		{"transparent wildcard", "0.0.0.0:80", offload.BindTransparent, syscall.EPERM},
		{"transparent and free", foreignAddr + ":80", offload.BindTransparent | offload.BindFree, syscall.EPERM},
		{"free", foreignAddr + ":80", offload.BindFree, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, errno := h.bind(0, c.addr, c.flags); errno != uint32(c.want) {
				t.Errorf("bind: errno %d, want %d", errno, c.want)
			}
		})
	}
	for _, c := range []struct {
		name  string
		flags uint32
		want  syscall.Errno
	}{
		{"connect", 0, syscall.EADDRNOTAVAIL},
		{"connect transparent", offload.BindTransparent, syscall.EPERM},
		{"connect free", offload.BindFree, syscall.ENETUNREACH},
	} {
		t.Run(c.name, func(t *testing.T) {
			if s := h.connectWith(0, remoteAddr+":80", foreignAddr+":0", c.flags); s.errno != uint32(c.want) {
				t.Errorf("errno %d, want %d", s.errno, c.want)
			}
		})
	}
	l, _ := h.bind(0, "0.0.0.0:90", 0)
	b := make([]byte, offload.OptValSize)
	(&offload.OptVal{Level: syscall.IPPROTO_IP, Name: 19, Len: 4, Val: [240]byte{1}}).Put(b)
	if a := h.request(0, offload.OpSetOpt, l.handle, 0, b); a.errno != uint32(syscall.EPERM) {
		t.Errorf("IP_TRANSPARENT on a bound socket: errno %d, want EPERM", a.errno)
	}
}

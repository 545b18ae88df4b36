// SPDX-License-Identifier: Apache-2.0

package procnet

import (
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
)

// This process's own sockets, as package net tells them.
func TestSockets(t *testing.T) {
	type row struct {
		udp, listening bool
		local, peer    netip.AddrPort
	}
	want := map[row]bool{}
	for _, at := range []string{"127.0.0.1:0", "[::1]:0"} {
		l, err := net.Listen("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		la := l.Addr().(*net.TCPAddr).AddrPort()
		want[row{false, true, la, netip.AddrPortFrom(unspecified(la), 0)}] = true
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		want[row{false, false, c.LocalAddr().(*net.TCPAddr).AddrPort(), la}] = true
		u, err := net.ListenPacket("udp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer u.Close()
		ua := u.LocalAddr().(*net.UDPAddr).AddrPort()
		want[row{true, false, ua, netip.AddrPortFrom(unspecified(ua), 0)}] = true
	}
	got, err := Sockets(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range got {
		delete(want, row{s.UDP, s.Listening, s.Local, s.Peer})
	}
	for w := range want {
		t.Errorf("%+v is not among %+v", w, got)
	}
}

func unspecified(a netip.AddrPort) netip.Addr {
	if a.Addr().Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

func TestParseOddLines(t *testing.T) {
	in := `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 7 1
   1: XX:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 7 1
   2: 0100007F:0051 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 8 1
   3: short
   4: 0100007F:0052 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 x 1
`
	got, err := parse(strings.NewReader(in), false, map[uint64]bool{7: true})
	if err != nil || len(got) != 1 || got[0].Local != netip.MustParseAddrPort("127.0.0.1:80") || !got[0].Listening {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := Sockets(1 << 30); err == nil {
		t.Error("a process that is not there has sockets")
	}
}

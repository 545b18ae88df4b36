// SPDX-License-Identifier: Apache-2.0

package netstack

import (
	"net/netip"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
)

// The limit on ICMP messages (50 at once, 1000 a second) does not hold for
// datagrams of the stack's own. Who is not connected is not told.
func TestEveryDatagramIsRefused(t *testing.T) {
	s, err := New(Options{Loopback: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	for _, to := range []string{"127.0.0.1:7", "[::1]:7"} {
		peer := netip.MustParseAddrPort(to)
		told := make(chan struct{}, 1)
		u := s.NewUDP(peer.Addr().Is6(), func() {
			select {
			case told <- struct{}{}:
			default:
			}
		})
		t.Cleanup(u.Close)
		stranger := s.NewUDP(peer.Addr().Is6(), func() { t.Error("a socket without peer was told") })
		t.Cleanup(stranger.Close)
		if err := u.Connect(peer); err != nil {
			t.Fatal(err)
		}
		if err := stranger.Bind(netip.AddrPortFrom(peer.Addr(), 0)); err != nil {
			t.Fatal(err)
		}
		for i := range 300 {
			if err := stranger.Send([]byte("anyone?"), Sent{To: peer, TOS: -1}); err != nil {
				t.Fatal(err)
			}
			if err := u.Send([]byte("anyone?"), Sent{TOS: -1}); err != nil {
				t.Fatal(err)
			}
			select {
			case <-told:
			case <-time.After(10 * time.Second):
				t.Fatalf("datagram %d to %s was not refused", i, to)
			}
			if _, ok := u.Err().(*tcpip.ErrConnectionRefused); !ok {
				t.Fatal("told of something else")
			}
		}
	}
}

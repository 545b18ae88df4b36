// SPDX-License-Identifier: Apache-2.0

package netstack

import (
	"net/netip"
	"testing"
)

// Any frame may come while there are sockets at foreign addresses.
func FuzzForeignFrame(f *testing.F) {
	mac := [6]byte{2, 0, 0, 0, 0, 1}
	e := NewEndpoint(mac, 1500, func() {})
	s, err := New(Options{Ports: []Port{{Name: "eth0", Endpoint: e, Addresses: []netip.Prefix{
		netip.MustParsePrefix("198.18.0.2/24"), netip.MustParsePrefix("2001:2::2/64"),
	}}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(s.Close)
	st, err := s.Foreign()
	if err != nil {
		f.Fatal(err)
	}
	s.SetTransparent(listening(f, st, "[::]:80"), true)

	frame := func(typ uint16, b ...byte) []byte {
		return append(append(append([]byte(nil), mac[:]...), 2, 0, 0, 0, 0, 2, byte(typ>>8), byte(typ)), b...)
	}
	syn := frame(0x0800, 0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 198, 18, 0, 9, 203, 0, 113, 1,
		0x80, 0, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0)
	unreachable := frame(0x0800, append([]byte{0x45, 0, 0, 56, 0, 0, 0, 0, 64, 1, 0, 0, 198, 18, 0, 9, 203, 0, 113, 1,
		3, 4, 0, 0, 0, 0, 0, 0}, syn[14:]...)...)
	six := make([]byte, 60)
	six[0], six[5], six[6], six[24] = 0x60, 20, 6, 0x20
	for _, seed := range [][]byte{syn, unreachable, frame(0x86dd, six...), frame(0x0806, make([]byte, 28)...)} {
		f.Add(seed)
	}
	if !s.wants4(syn[14:], 1) {
		f.Error("a SYN for the listener is not wanted")
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= 6 {
			copy(b, mac[:]) // for this port
		}
		e.Deliver(b)
	})
}

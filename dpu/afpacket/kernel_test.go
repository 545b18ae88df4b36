// SPDX-License-Identifier: Apache-2.0

package afpacket

import (
	"encoding/binary"
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pno/internal/ethtool"
	"pno/internal/netns"
)

// TestFinishesTheKernelsChecksums has a kernel with checksum offload send UDP
// and TCP, and checks what arrives.
func TestFinishesTheKernelsChecksums(t *testing.T) {
	a, b := netns.New(t, "a"), netns.New(t, "b")
	netns.VethPairWith(t, a, "eth0", b, "eth0", netns.VethOptions{KeepOffloads: true})
	a.AddrAdd("eth0", "198.18.0.1/24")
	a.AddrAdd("eth0", "fd00::1/64")
	neighbour := b.MAC("eth0")
	d := openIn(t, b, Options{Interface: "eth0"})
	q := d.Queues()[0]

	for _, ip := range []string{"198.18.0.2", "fd00::2"} {
		a.NeighAdd("eth0", ip, neighbour)
		a.Do(func() {
			c, err := net.Dial("udp", net.JoinHostPort(ip, "7000"))
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			if _, err := c.Write([]byte("an odd number of bytes.")); err != nil {
				t.Error(err)
			}
		})
		go func() { // the SYN is all that is wanted
			c, err := a.DialContext(t.Context(), "tcp", net.JoinHostPort(ip, "7000"))
			if err == nil {
				c.Close()
			}
		}()
	}
	seen := map[string]bool{}
	frames := make([][]byte, 16)
	for end := time.Now().Add(20 * time.Second); len(seen) < 4; time.Sleep(time.Millisecond) {
		n, err := q.Recv(frames)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range frames[:n] {
			if proto, segment := transport(f); proto == unix.IPPROTO_UDP || proto == unix.IPPROTO_TCP {
				if binary.BigEndian.Uint16(segment[2:]) != 7000 {
					continue
				}
				sum := slowSum(pseudoHeader(f, proto, len(segment)), segment)
				if sum != 0xffff {
					t.Errorf("protocol %d sums to %#04x", proto, sum)
				}
				seen[string(f[12:14])+string(proto)] = true
			}
		}
		q.Release()
		if time.Now().After(end) {
			t.Fatalf("received only %d kinds of packets: %v", len(seen), seen)
		}
	}
}

func pseudoHeader(frame []byte, proto byte, length int) []byte {
	addresses := frame[14+12 : 14+20]
	if frame[12] == 0x86 {
		addresses = frame[14+8 : 14+40]
	}
	return append(append([]byte(nil), addresses...), 0, proto, byte(length>>8), byte(length))
}

func TestMergingIsOffWhileOpen(t *testing.T) {
	n, peer := netns.New(t, "a"), netns.New(t, "b")
	netns.VethPair(t, n, "eth0", peer, "eth0")
	gro := func() (on uint32) {
		n.Do(func() {
			c, err := ethtool.Open()
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			if on, err = c.Get("eth0", unix.ETHTOOL_GGRO); err != nil {
				t.Error(err)
			}
		})
		return on
	}
	n.Do(func() {
		c, err := ethtool.Open()
		if err == nil {
			err = errors.Join(c.Set("eth0", unix.ETHTOOL_SGRO, 1), c.Close())
		}
		if err != nil {
			t.Error(err)
		}
	})
	for _, keep := range []bool{false, true} {
		d := openIn(t, n, Options{Interface: "eth0", KeepMerging: keep})
		if on := gro() == 1; on != keep {
			t.Errorf("KeepMerging %v: GRO is on while open: %v", keep, on)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		if gro() != 1 {
			t.Errorf("KeepMerging %v: GRO is off after Close", keep)
		}
	}
}

func TestOpenAndCloseLeaveNothing(t *testing.T) {
	n, peer := netns.New(t, "a"), netns.New(t, "b")
	netns.VethPairWith(t, n, "eth0", peer, "eth0", netns.VethOptions{Queues: 2})
	count := func() (maps, fds int) {
		b, err := os.ReadFile("/proc/self/maps")
		if err != nil {
			t.Fatal(err)
		}
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(b), "socket:"), len(entries)
	}
	maps, fds := count()
	for range 5 {
		if err := openIn(t, n, Options{Interface: "eth0"}).Close(); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name string
		opts Options
	}{
		{"no such interface", Options{Interface: "eth9"}},
		{"negative queues", Options{Interface: "eth0", Queues: -1}},
		{"frame count", Options{Interface: "eth0", Frames: 100}},
	} {
		n.Do(func() {
			if d, err := Open(c.opts); err == nil {
				d.Close()
				t.Errorf("%s: opened", c.name)
			}
		})
	}
	if m, f := count(); m != maps || f > fds {
		t.Errorf("%d ring mappings and %d descriptors, %d and %d before", m, f, maps, fds)
	}
}

// SPDX-License-Identifier: Apache-2.0

package rss

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"
)

// The vectors are those of the RSS specification.
func TestHashVectors(t *testing.T) {
	tab := New(1, 32768, 60999)
	for _, c := range []struct {
		src, dst string
		want     uint32
	}{
		{"66.9.149.187:2794", "161.142.100.80:1766", 0x51ccc178},
		{"199.92.111.2:14230", "65.69.140.83:4739", 0xc626b0ea},
		{"24.19.198.95:12898", "12.22.207.184:38024", 0x5c2b394a},
		{"[3ffe:2501:200:1fff::7]:2794", "[3ffe:2501:200:3::1]:1766", 0x40207d3d},
	} {
		if got := tab.Hash(netip.MustParseAddrPort(c.src), netip.MustParseAddrPort(c.dst)); got != c.want {
			t.Errorf("hash of %s to %s = %#x, want %#x", c.src, c.dst, got, c.want)
		}
	}
}

func tcp4(src, dst netip.AddrPort) []byte {
	f := make([]byte, 54)
	binary.BigEndian.PutUint16(f[12:], etherIPv4)
	f[14], f[23] = 0x45, protoTCP
	s, d := src.Addr().As4(), dst.Addr().As4()
	copy(f[26:], s[:])
	copy(f[30:], d[:])
	binary.BigEndian.PutUint16(f[34:], src.Port())
	binary.BigEndian.PutUint16(f[36:], dst.Port())
	return f
}

func TestPortBringsRepliesToTheShard(t *testing.T) {
	for _, shards := range []int{1, 2, 3, 8, 16} {
		tab := New(shards, 32768, 60999)
		rng := rand.New(rand.NewPCG(7, uint64(shards)))
		for range 200 {
			local := netip.AddrFrom4([4]byte{198, 18, byte(rng.Uint32()), byte(rng.Uint32())})
			peer := netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 19, byte(rng.Uint32()), 1}), uint16(rng.Uint32()))
			want := rng.IntN(shards)
			seed, seen := rng.Uint32(), map[uint16]bool{}
			for try := range 300 {
				p, ok := tab.Port(local, peer, want, seed, try)
				if !ok || seen[p] {
					t.Fatalf("%d shards, try %d: port %d ok %v seen %v", shards, try, p, ok, seen[p])
				}
				seen[p] = true
				lp := netip.AddrPortFrom(local, p)
				if got := tab.Shard(lp, peer); got != want {
					t.Fatalf("%d shards: %s to %s on shard %d, want %d", shards, lp, peer, got, want)
				}
				if got := tab.Frame(tcp4(peer, lp)); got != want {
					t.Fatalf("%d shards: frame on shard %d, want %d", shards, got, want)
				}
			}
		}
	}
}

func TestPortsRunOut(t *testing.T) {
	tab := New(2, 40000, 40099)
	local, peer := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddrPort("[2001:db8::2]:80")
	seen := map[uint16]bool{}
	for shard := range 2 {
		for try := range 10000 {
			if p, ok := tab.Port(local, peer, shard, 99, try); ok {
				seen[p] = true
			}
		}
	}
	if len(seen) != 100 {
		t.Errorf("%d ports of 100 offered", len(seen))
	}
}

func TestFrameClasses(t *testing.T) {
	tab := New(4, 32768, 60999)
	local, peer := netip.MustParseAddrPort("198.18.0.2:40001"), netip.MustParseAddrPort("198.18.0.9:80")
	arp := make([]byte, 60)
	binary.BigEndian.PutUint16(arp[12:], etherARP)
	arp[21] = 1
	reply := append([]byte(nil), arp...)
	reply[21] = arpReply
	icmp := make([]byte, 14+20+8+28)
	binary.BigEndian.PutUint16(icmp[12:], etherIPv4)
	icmp[14], icmp[23], icmp[34] = 0x45, protoICMP, 3
	copy(icmp[42:], tcp4(local, peer)[14:])
	for _, c := range []struct {
		name  string
		frame []byte
		want  int
	}{
		{"request", arp, 0},
		{"reply", reply, All},
		{"unreachable", icmp, tab.Shard(local, peer)},
		{"short", arp[:10], 0},
	} {
		if got := tab.Frame(c.frame); got != c.want {
			t.Errorf("%s: shard %d, want %d", c.name, got, c.want)
		}
	}
}

func FuzzFrame(f *testing.F) {
	tab := New(3, 32768, 60999)
	f.Add(tcp4(netip.MustParseAddrPort("1.2.3.4:5"), netip.MustParseAddrPort("6.7.8.9:10")))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s := tab.Frame(b); s < All || s > 2 {
			t.Fatalf("shard %d", s)
		}
	})
}

func BenchmarkFrame(b *testing.B) {
	tab := New(4, 32768, 60999)
	f := tcp4(netip.MustParseAddrPort("1.2.3.4:5"), netip.MustParseAddrPort("6.7.8.9:10"))
	b.ReportAllocs()
	for b.Loop() {
		tab.Frame(f)
	}
}

// Every received frame is looked at, and every connection that is made.
func TestAllocates(t *testing.T) {
	tab := New(4, 32768, 60999)
	src, dst := netip.MustParseAddrPort("198.18.0.1:4000"), netip.MustParseAddrPort("198.18.0.2:80")
	src6, dst6 := netip.MustParseAddrPort("[2001:db8::1]:4000"), netip.MustParseAddrPort("[2001:db8::2]:80")
	frame := tcp4(src, dst)
	frame6 := make([]byte, 74)
	binary.BigEndian.PutUint16(frame6[12:], etherIPv6)
	frame6[14], frame6[20] = 0x60, protoTCP
	if n := testing.AllocsPerRun(100, func() {
		tab.Frame(frame)
		tab.Frame(frame6)
		tab.Shard(dst, src)
		tab.Shard(dst6, src6)
		tab.Port(dst.Addr(), src, 3, 7, 2)
		tab.Port(dst6.Addr(), src6, 3, 7, 2)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

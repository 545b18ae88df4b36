// SPDX-License-Identifier: Apache-2.0

package afpacket

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// packet builds a TCP or UDP frame whose checksum is left unfinished, as the
// kernel leaves it: the field holds the pseudo header's sum. It also returns
// the checksum that the frame must get.
func packet(version int, proto byte, payload, padding int, r *rand.Rand) (frame []byte, at int, want uint16) {
	header, field := 20, 16
	if proto == unix.IPPROTO_UDP {
		header, field = 8, 6
	}
	segment := make([]byte, header+payload)
	for i := range segment {
		segment[i] = byte(r.Uint32())
	}
	var ip, pseudo []byte
	if version == 4 {
		ip = make([]byte, 20)
		ip[0], ip[8], ip[9] = 0x45, 64, proto
		binary.BigEndian.PutUint16(ip[2:], uint16(20+len(segment)))
		binary.BigEndian.PutUint32(ip[12:], r.Uint32())
		binary.BigEndian.PutUint32(ip[16:], r.Uint32())
		pseudo = append(pseudo, ip[12:20]...)
	} else {
		ip = make([]byte, 40)
		ip[0], ip[6], ip[7] = 0x60, proto, 64
		binary.BigEndian.PutUint16(ip[4:], uint16(len(segment)))
		for i := 8; i < 40; i++ {
			ip[i] = byte(r.Uint32())
		}
		pseudo = append(pseudo, ip[8:40]...)
	}
	pseudo = append(pseudo, 0, proto, byte(len(segment)>>8), byte(len(segment)))
	binary.BigEndian.PutUint16(segment[field:], 0)
	want = ^slowSum(pseudo, segment)
	if want == 0 && proto == unix.IPPROTO_UDP {
		want = 0xffff
	}
	binary.BigEndian.PutUint16(segment[field:], slowSum(pseudo))

	frame = make([]byte, 12, 14+len(ip)+len(segment)+padding)
	if version == 4 {
		frame = append(frame, 0x08, 0x00)
	} else {
		frame = append(frame, 0x86, 0xdd)
	}
	frame = append(append(frame, ip...), segment...)
	for range padding {
		frame = append(frame, 0xa5)
	}
	return frame, 14 + len(ip) + field, want
}

// slowSum is the sum as its definition has it, two bytes at a time.
func slowSum(parts ...[]byte) uint16 {
	var sum uint32
	for i, v := range slices.Concat(parts...) {
		if i%2 == 0 {
			sum += uint32(v) << 8
		} else {
			sum += uint32(v)
		}
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

func TestFinishChecksum(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		version := 4 + 2*r.IntN(2)
		proto := []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP}[r.IntN(2)]
		frame, at, want := packet(version, proto, r.IntN(1400), r.IntN(20), r)
		if !finishChecksum(frame) {
			t.Fatalf("refused IPv%d protocol %d of %d bytes", version, proto, len(frame))
		}
		// Zero and 0xffff are the same sum; a TCP receiver takes either.
		if got := binary.BigEndian.Uint16(frame[at:]); got != want && !(proto == unix.IPPROTO_TCP && got^want == 0xffff) {
			t.Fatalf("IPv%d protocol %d of %d bytes: checksum %#04x, want %#04x", version, proto, len(frame), got, want)
		}
	}
}

func TestFinishChecksumRefuses(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for _, c := range []struct {
		name   string
		change func([]byte) []byte
	}{
		{"nothing", func([]byte) []byte { return nil }},
		{"only an Ethernet header", func(f []byte) []byte { return f[:14] }},
		{"half an IP header", func(f []byte) []byte { return f[:24] }},
		{"half a TCP header", func(f []byte) []byte { f[17] = 36; f[16] = 0; return f }},
		{"longer than the frame", func(f []byte) []byte { f[16] = 0xff; return f }},
		{"IP header length 0", func(f []byte) []byte { f[14] = 0x40; return f }},
		{"IP header beyond the packet", func(f []byte) []byte { f[14] = 0x4f; f[16], f[17] = 0, 40; return f }},
		{"a later fragment", func(f []byte) []byte { f[21] = 1; return f }},
		{"a first fragment", func(f []byte) []byte { f[20] = 0x20; return f }},
		{"another protocol", func(f []byte) []byte { f[23] = 132; return f }},
		{"another network", func(f []byte) []byte { f[12] = 0x88; return f }},
	} {
		t.Run(c.name, func(t *testing.T) {
			frame, _, _ := packet(4, unix.IPPROTO_TCP, 100, 0, r)
			if finishChecksum(c.change(frame)) {
				t.Fatal("accepted")
			}
		})
	}
}

func FuzzFinishChecksum(f *testing.F) {
	r := rand.New(rand.NewPCG(5, 6))
	for _, version := range []int{4, 6} {
		frame, _, _ := packet(version, unix.IPPROTO_TCP, 50, 4, r)
		f.Add(frame)
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		before := append([]byte(nil), frame...)
		finishChecksum(frame)
		changed := 0
		for i := range frame {
			if frame[i] != before[i] {
				changed++
			}
		}
		if changed > 2 {
			t.Fatalf("%d bytes changed", changed)
		}
	})
}

// FuzzReceived gives slots with arbitrary headers, as a broken kernel might.
func FuzzReceived(f *testing.F) {
	f.Add(uint32(60), uint32(60), uint16(66), uint32(unix.TP_STATUS_USER))
	f.Add(uint32(60), uint32(60), uint16(66), uint32(unix.TP_STATUS_USER|unix.TP_STATUS_CSUMNOTREADY))
	f.Fuzz(func(t *testing.T, length, snaplen uint32, mac uint16, state uint32) {
		slot := alignedSlot(2048)
		h := header(slot)
		h.Len, h.Snaplen, h.Mac = length, snaplen, mac
		frame := received(slot, state, 1514)
		if frame != nil && (len(frame) != int(snaplen) || len(frame) < ethernetHeader || len(frame) > 1514 || cap(frame) != len(frame)) {
			t.Fatalf("frame of %d bytes", len(frame))
		}
	})
}

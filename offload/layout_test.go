// SPDX-License-Identifier: Apache-2.0

package offload_test

import (
	"errors"
	"net/netip"
	"testing"

	"pno/offload"
	"pno/offload/shm"
)

func TestLayoutCheck(t *testing.T) {
	for _, c := range []struct {
		name string
		mod  func(*offload.Layout)
		ok   bool
	}{
		{"default", func(*offload.Layout) {}, true},
		{"no channel", func(l *offload.Layout) { l.Channels = 0 }, false},
		{"too many channels", func(l *offload.Layout) { l.Channels = offload.MaxChannels + 1 }, false},
		{"negative shards", func(l *offload.Layout) { l.Shards = -1 }, false},
		{"ring no power of two", func(l *offload.Layout) { l.H2DSize = 100000 }, false},
		{"ring too small", func(l *offload.Layout) { l.D2HSize = 4096 }, false},
		{"window beyond the ring", func(l *offload.Layout) { l.RxWindow = l.D2HSize }, false},
		{"window below a record", func(l *offload.Layout) { l.TxWindow = 1 }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := offload.DefaultLayout(2)
			c.mod(&l)
			if err := l.Check(); (err == nil) != c.ok || err != nil && !errors.Is(err, offload.ErrLayout) {
				t.Errorf("Check() = %v, want ok %v", err, c.ok)
			}
		})
	}
}

// TestLayoutDoesNotOverlap lays every queue pair out and checks that no two
// pieces share a byte.
func TestLayoutDoesNotOverlap(t *testing.T) {
	l := offload.DefaultLayout(3)
	l.Channels = 5
	end := uint64(offload.ChannelsOff)
	for c := range l.Channels {
		for s := range l.Shards {
			if q := l.QP(c, s); q.HostLine < end || q.DevLine < q.HostLine+offload.CacheLine {
				t.Fatalf("control block of channel %d shard %d at %#x overlaps what ends at %#x", c, s, q.HostLine, end)
			}
		}
		end = l.QP(c, l.Shards-1).DevLine + offload.CacheLine
		for s := range l.Shards {
			q := l.QP(c, s)
			if q.H2D < end || q.H2D%4096 != 0 || q.D2H != q.H2D+uint64(l.H2DSize) {
				t.Fatalf("rings of channel %d shard %d: %+v after %#x", c, s, q, end)
			}
			end = q.D2H + uint64(l.D2HSize)
		}
	}
	if end != l.TotalSize() {
		t.Errorf("pieces end at %#x, TotalSize is %#x", end, l.TotalSize())
	}
}

func TestAddrRoundTrip(t *testing.T) {
	for _, s := range []string{"198.18.0.2:80", "[2001:db8::1]:443", "0.0.0.0:0", "[::]:65535"} {
		ap := netip.MustParseAddrPort(s)
		var b [offload.AddrSize]byte
		offload.AddrFrom(ap).Put(b[:])
		a, err := offload.GetAddr(b[:])
		if err != nil || a.AddrPort() != ap {
			t.Errorf("%s came back as %v, %v", s, a.AddrPort(), err)
		}
	}
}

func TestTransportRefusesAccessOutside(t *testing.T) {
	const size = 4096
	r, err := shm.Map(memFile(t, make([]byte, size)), size)
	if err != nil {
		t.Fatal(err)
	}
	tr := r.NewTransport(-1)
	defer func() { _ = tr.Close(); _ = r.Close() }()
	for _, op := range []offload.DMA{
		{Off: size - 8, Buf: make([]byte, 16)},
		{Off: 1<<64 - 8, Buf: make([]byte, 16)},
		{Kind: offload.DMAWrite, Off: size + 1, Buf: nil},
		{Line: true, Off: 4, Buf: make([]byte, 8)},
		{Line: true, Off: 0, Buf: make([]byte, 72)},
	} {
		if err := tr.Post(&op); !errors.Is(err, offload.ErrBounds) || op.Done {
			t.Errorf("access at %#x of %d bytes: %v", op.Off, len(op.Buf), err)
		}
	}
}

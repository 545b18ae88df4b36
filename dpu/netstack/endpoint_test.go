// SPDX-License-Identifier: Apache-2.0

package netstack

import (
	"net/netip"
	"testing"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// narrow is a device with room for a few frames until it is flushed.
type narrow struct {
	room int
	buf  [64]byte
	sent []byte // the first byte of each frame
}

func (d *narrow) TxAlloc() []byte {
	if d.room == 0 {
		return nil
	}
	return d.buf[:]
}

func (d *narrow) TxCommit(int) {
	d.room--
	d.sent = append(d.sent, d.buf[0])
}

// Packets wait for a device that is full: none is dropped, none overtakes.
func TestPacketsWaitForAFullLink(t *testing.T) {
	const packets = 100
	e := NewEndpoint([6]byte{2}, 1500, func() {})
	d := &narrow{}
	for i := range packets {
		p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData([]byte{byte(i), 1, 2})})
		var list stack.PacketBufferList
		list.PushBack(p)
		if n, err := e.WritePackets(list); n != 1 || err != nil {
			t.Fatalf("packet %d: %d, %v", i, n, err)
		}
		list.Reset()
		if i%9 == 0 {
			d.room = 3
			e.Drain(d)
		}
	}
	for e.Waiting() {
		d.room = 7
		e.Drain(d)
	}
	if len(d.sent) != packets {
		t.Fatalf("%d packets sent, want %d", len(d.sent), packets)
	}
	for i, b := range d.sent {
		if int(b) != i {
			t.Fatalf("packet %d overtook packet %d", b, i)
		}
	}
	if waits, peak, refused := e.Held(); waits == 0 || peak == 0 || refused != 0 {
		t.Errorf("waits %d, peak %d, refused %d", waits, peak, refused)
	}
}

// A FIN goes with the data before it, if nothing speaks against it.
func TestDataCarriesTheFIN(t *testing.T) {
	const size, mss = 2000, 1448
	for _, c := range []struct {
		name   string
		change func(data, fin header.TCP)
		drain  bool // between the two
		frames int
	}{
		{"at once", func(_, _ header.TCP) {}, false, 2},
		{"the data is sent", func(_, _ header.TCP) {}, true, 3},
		{"data is missing between", func(_, fin header.TCP) { fin.SetSequenceNumber(fin.SequenceNumber() + 1) }, false, 3},
		{"another connection's", func(_, fin header.TCP) { fin.SetSourcePort(81) }, false, 3},
		{"another peer's", func(_, fin header.TCP) { fin.SetDestinationPort(81) }, false, 3},
		{"more is acknowledged", func(_, fin header.TCP) { fin.SetAckNumber(8) }, false, 3},
		{"a reset", func(_, fin header.TCP) { fin.SetFlags(uint8(header.TCPFlagRst | header.TCPFlagAck)) }, false, 3},
		{"no end", func(_, fin header.TCP) { fin.SetFlags(uint8(header.TCPFlagAck)) }, false, 3},
		{"the data is urgent", func(data, _ header.TCP) { data.SetFlags(uint8(header.TCPFlagAck | header.TCPFlagUrg)) }, false, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := NewEndpoint([6]byte{2}, 1500, func() {})
			e.flows = &flows{table: make(map[flowKey]*flow)}
			data, _ := cut{size: size, views: 1, mss: mss}.packet()
			end, _ := cut{mss: mss}.packet()
			dh, fh := header.TCP(data.TransportHeader().Slice()), header.TCP(end.TransportHeader().Slice())
			dh.SetFlags(uint8(header.TCPFlagAck | header.TCPFlagPsh))
			seq := dh.SequenceNumber()
			fh.SetSequenceNumber(seq + size)
			fh.SetFlags(uint8(header.TCPFlagAck | header.TCPFlagFin))
			c.change(dh, fh)
			r := recorder{room: 9, size: 1514}
			for _, p := range []*stack.PacketBuffer{data, end} {
				if err := e.WritePacket(p); err != nil {
					t.Fatal(err)
				}
				p.DecRef()
				if c.drain {
					e.Drain(&r)
				}
			}
			e.Drain(&r)
			if len(r.frames) != c.frames {
				t.Fatalf("%d frames, want %d", len(r.frames), c.frames)
			}
			for i, f := range r.frames[:2] {
				h := header.TCP(f[ethLen+ipv4Len:])
				want := header.TCPFlagAck
				if last := i == 1; last && c.frames == 2 {
					want |= header.TCPFlagPsh | header.TCPFlagFin
				}
				if got := h.Flags(); got != want && c.frames == 2 || got&header.TCPFlagFin != want&header.TCPFlagFin {
					t.Errorf("frame %d has %v, want %v", i, got, want)
				}
				sum := checksum.Checksum(f[ethLen+12:ethLen+20], uint16(header.TCPProtocolNumber))
				if checksum.Checksum(h, checksum.Combine(sum, uint16(len(h)))) != 0xffff {
					t.Errorf("frame %d has a wrong checksum", i)
				}
			}
		})
	}
}

// Only what the IP layer would let pass goes past it.
func TestSegmentsPastTheIPLayer(t *testing.T) {
	s, e := waitingStack(t, false)
	listening(t, s, "0.0.0.0:80")
	for _, c := range []struct {
		local, peer string
		port        uint16
		taken       bool
	}{
		{"198.18.0.2", "198.18.0.9", 80, true},
		{"198.18.0.2", "192.0.2.7", 80, true},
		{"198.18.0.2", "198.18.0.9", 81, false},
		{"198.18.0.3", "198.18.0.9", 80, false},
		{"198.18.0.255", "198.18.0.9", 80, false},
		{"224.0.0.1", "198.18.0.9", 80, false},
		{"127.0.0.1", "198.18.0.9", 80, false},
		{"198.18.0.2", "198.18.0.2", 80, false},
		{"198.18.0.2", "198.18.0.255", 80, false},
		{"198.18.0.2", "255.255.255.255", 80, false},
		{"198.18.0.2", "239.1.2.3", 80, false},
		{"198.18.0.2", "127.0.0.9", 80, false},
		{"198.18.0.2", "0.0.0.0", 80, false},
	} {
		g, ok := parse(segment(syn, 1, 0, 0))
		if !ok {
			t.Fatal("a good segment is not taken for one")
		}
		g.key.local, g.key.peer = netip.MustParseAddr(c.local).As4(), netip.MustParseAddr(c.peer).As4()
		g.key.localPort = c.port
		if taken := e.early(&g); taken != c.taken {
			t.Errorf("from %s to %s port %d: %v", c.peer, c.local, c.port, taken)
		}
	}
}

// listening is an endpoint of a stack that listens there, until the test ends.
func listening(t testing.TB, s *Stack, at string) tcpip.Endpoint {
	t.Helper()
	addr, family := netip.MustParseAddrPort(at), header.IPv4ProtocolNumber
	if addr.Addr().Is6() {
		family = header.IPv6ProtocolNumber
	}
	ep, err := s.NewEndpoint(tcp.ProtocolNumber, family, new(waiter.Queue))
	if err == nil {
		t.Cleanup(ep.Close)
		err = ep.Bind(Full(addr))
	}
	if err == nil {
		err = ep.Listen(16)
	}
	if err != nil {
		t.Fatal(err)
	}
	return ep
}

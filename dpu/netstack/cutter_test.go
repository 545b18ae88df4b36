// SPDX-License-Identifier: Apache-2.0

package netstack

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

var (
	cutSrc4, cutDst4 = tcpip.AddrFrom4([4]byte{198, 18, 0, 1}), tcpip.AddrFrom4([4]byte{198, 18, 255, 2})
	cutSrc6, cutDst6 = tcpip.AddrFrom16([16]byte{0x20, 1, 0, 2, 15: 1}), tcpip.AddrFrom16([16]byte{0x20, 1, 0, 2, 15: 254})
)

const (
	cutSeq   = 0xffffff00 // sequence numbers wrap on the way
	cutID    = 0xfffe
	cutFlags = header.TCPFlagAck | header.TCPFlagPsh | header.TCPFlagFin
)

// cut describes a TCP segment that the stack hands down.
type cut struct {
	v6      bool
	size    int // of the payload
	views   int // that hold it
	mss     int
	options int // bytes of TCP options
}

// packet builds the segment as the stack would, and returns its payload.
func (c cut) packet() (*stack.PacketBuffer, []byte) {
	rnd := rand.New(rand.NewPCG(uint64(c.size), uint64(c.mss)))
	data := make([]byte, c.size)
	for i := range data {
		data[i] = byte(rnd.Uint32())
	}
	var b buffer.Buffer
	for i, rest := c.views, data; i > 0; i-- {
		n := len(rest) / i
		_ = b.Append(buffer.NewViewWithData(rest[:n]))
		rest = rest[n:]
	}
	p := stack.NewPacketBuffer(stack.PacketBufferOptions{ReserveHeaderBytes: 128, Payload: b})
	th := header.TCP(p.TransportHeader().Push(tcpLen + c.options))
	th.Encode(&header.TCPFields{
		SrcPort: 80, DstPort: 40000, SeqNum: cutSeq, AckNum: 7, DataOffset: uint8(tcpLen + c.options), Flags: cutFlags, WindowSize: 500,
	})
	for i := range c.options {
		th[tcpLen+i] = header.TCPOptionNOP
	}
	p.TransportProtocolNumber = header.TCPProtocolNumber
	p.GSOOptions = stack.GSO{Type: stack.GSOTCPv4, NeedsCsum: true, MSS: uint16(c.mss)}
	if c.v6 {
		p.GSOOptions.Type = stack.GSOTCPv6
		header.IPv6(p.NetworkHeader().Push(header.IPv6MinimumSize)).Encode(&header.IPv6Fields{
			PayloadLength: uint16(min(len(th)+c.size, 1<<16-1)), TransportProtocol: header.TCPProtocolNumber, HopLimit: 64,
			SrcAddr: cutSrc6, DstAddr: cutDst6,
		})
	} else {
		header.IPv4(p.NetworkHeader().Push(ipv4Len)).Encode(&header.IPv4Fields{
			TotalLength: uint16(min(ipv4Len+len(th)+c.size, 1<<16-1)), ID: cutID, TTL: 64, Protocol: uint8(header.TCPProtocolNumber),
			SrcAddr: cutSrc4, DstAddr: cutDst4,
		})
	}
	header.Ethernet(p.LinkHeader().Push(ethLen)).Encode(&header.EthernetFields{SrcAddr: "\x02aaaaa", DstAddr: "\x02bbbbb", Type: 0x800})
	return p, data
}

// recorder is a device with room for a few frames at once.
type recorder struct {
	room   int
	size   int
	buf    []byte
	frames [][]byte
}

func (r *recorder) TxAlloc() []byte {
	if r.room == 0 {
		return nil
	}
	r.buf = make([]byte, r.size)
	return r.buf
}

func (r *recorder) TxCommit(n int) {
	r.room--
	r.frames = append(r.frames, r.buf[:n])
}

func TestCutter(t *testing.T) {
	for _, c := range []cut{
		{size: 0, mss: 1448, options: 12},
		{size: 1, views: 1, mss: 1448, options: 12},
		{size: 1448, views: 1, mss: 1448, options: 12},
		{size: 1449, views: 2, mss: 1448, options: 12},
		{size: 2896, views: 3, mss: 1448, options: 12},
		{size: 65000, views: 2, mss: 1460},
		{size: 65483, views: 7, mss: 1448, options: 12},
		{size: 5001, views: 5, mss: 537, options: 40},
		{v6: true, size: 0, mss: 1428},
		{v6: true, size: 64001, views: 3, mss: 1428, options: 12},
		{v6: true, size: 999, views: 1, mss: 1000, options: 32},
	} {
		t.Run(fmt.Sprintf("%+v", c), func(t *testing.T) {
			e := NewEndpoint([6]byte{2}, 1500, func() {})
			p, data := c.packet()
			if !e.enqueue(p.IncRef()) {
				t.Fatal("refused")
			}
			d := &recorder{size: 1514}
			sent := 0
			for e.Waiting() {
				d.room = 3 // a full device gets the rest later
				sent += e.Drain(d)
			}
			want := max(1, (c.size+c.mss-1)/c.mss)
			if sent != want || len(d.frames) != want {
				t.Fatalf("%d frames, Drain says %d, want %d", len(d.frames), sent, want)
			}
			if more := e.cuts[0].Value(); more != uint64(want-1) {
				t.Errorf("%d more segments counted, want %d", more, want-1)
			}
			var got []byte
			for i, f := range d.frames {
				got = append(got, c.check(t, f, i, len(got), i == want-1)...)
			}
			if !bytes.Equal(got, data) {
				t.Errorf("%d bytes of payload, want %d, or others", len(got), len(data))
			}
			if refs := p.ReadRefs(); refs != 1 {
				t.Errorf("%d references left, want the test's own", refs)
			}
			p.DecRef()
		})
	}
}

// check looks at frame i, before which there were some bytes of payload, and
// returns its payload.
func (c cut) check(t *testing.T, f []byte, i, before int, last bool) []byte {
	t.Helper()
	var th header.TCP
	var pseudo uint16
	if c.v6 {
		ip := header.IPv6(f[ethLen:])
		if int(ip.PayloadLength()) != len(ip)-header.IPv6MinimumSize {
			t.Errorf("frame %d: payload length %d of %d bytes", i, ip.PayloadLength(), len(ip))
		}
		th = header.TCP(ip[header.IPv6MinimumSize:])
		pseudo = header.PseudoHeaderChecksum(header.TCPProtocolNumber, ip.SourceAddress(), ip.DestinationAddress(), uint16(len(th)))
	} else {
		ip := header.IPv4(f[ethLen:])
		if !ip.IsChecksumValid() || int(ip.TotalLength()) != len(ip) || ip.ID() != uint16(cutID+i) {
			t.Errorf("frame %d: IP checksum valid %v, length %d of %d, ID %#x", i, ip.IsChecksumValid(), ip.TotalLength(), len(ip), ip.ID())
		}
		th = header.TCP(ip[ipv4Len:])
		pseudo = header.PseudoHeaderChecksum(header.TCPProtocolNumber, ip.SourceAddress(), ip.DestinationAddress(), uint16(len(th)))
	}
	if sum := checksum.Checksum(th, pseudo); sum != 0xffff {
		t.Errorf("frame %d: TCP checksum is wrong", i)
	}
	if want := uint32(cutSeq + uint64(before)); th.SequenceNumber() != want {
		t.Errorf("frame %d: sequence number %#x, want %#x", i, th.SequenceNumber(), want)
	}
	flags := cutFlags
	if !last {
		flags = header.TCPFlagAck
	}
	if th.Flags() != flags || th.AckNumber() != 7 || th.WindowSize() != 500 || int(th.DataOffset()) != tcpLen+c.options {
		t.Errorf("frame %d: flags %v, ack %d, window %d, header %d", i, th.Flags(), th.AckNumber(), th.WindowSize(), th.DataOffset())
	}
	return th.Payload()
}

// Cutting allocates nothing.
func TestCutterAllocates(t *testing.T) {
	e := NewEndpoint([6]byte{2}, 1500, func() {})
	p, _ := cut{size: 60000, views: 2, mss: 1448, options: 12}.packet()
	defer p.DecRef()
	d := &abyss{}
	send := func() {
		e.enqueue(p.IncRef())
		e.Drain(d)
	}
	send() // the queue's two buffers
	send()
	if n := testing.AllocsPerRun(100, send); n != 0 {
		t.Errorf("%v allocations a segment", n)
	}
	if d.frames == 0 {
		t.Error("nothing was sent")
	}
}

// abyss is a device that takes everything.
type abyss struct {
	buf    [1514]byte
	frames int
}

func (s *abyss) TxAlloc() []byte { return s.buf[:] }
func (s *abyss) TxCommit(int)    { s.frames++ }

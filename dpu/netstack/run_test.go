// SPDX-License-Identifier: Apache-2.0

package netstack

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// packets keeps what an endpoint is handed.
type packets struct {
	sizes   []int
	flags   []header.TCPFlags
	trusted int // of which the checksum is known to be right
	data    []byte
}

func (p *packets) QueuePacket(_ stack.TransportEndpoint, _ stack.TransportEndpointID, pkt *stack.PacketBuffer) {
	b := pkt.Data().AsRange().ToSlice()
	p.sizes = append(p.sizes, len(b))
	p.flags = append(p.flags, header.TCP(pkt.TransportHeader().Slice()).Flags())
	if pkt.RXChecksumValidated {
		p.trusted++
	}
	if n := int(header.IPv4(pkt.NetworkHeader().Slice()).TotalLength()); n != pkt.Size()-ethLen {
		p.sizes = append(p.sizes, -n) // which no test expects
	}
	p.data = append(p.data, b...)
}

var _ queuer = (*packets)(nil)

// piece is a segment of waitingOne's peer.
type piece struct {
	flags   header.TCPFlags
	seq     uint32
	stamp   uint32
	payload int
	spoil   int // this byte, from the end; 0: none
	other   bool
}

// play has pieces received in one batch.
func play(pieces []piece) (p packets, saved int, sent []byte) {
	var r run
	one, other := &flow{tcp: &p, ep: (*tcp.Endpoint)(nil)}, &flow{tcp: &packets{}}
	for _, c := range pieces {
		f := segment(c.flags, c.seq, c.stamp, 0)
		data := make([]byte, c.payload)
		for i := range data {
			data[i] = byte(c.seq+uint32(i)) ^ byte((c.seq+uint32(i))>>8)
		}
		f = withPayload(f, data)
		if c.spoil > 0 {
			f[len(f)-c.spoil] ^= 1
			data[len(data)-c.spoil] ^= 1
		}
		g, ok := parse(f)
		if !ok {
			panic("a bad frame")
		}
		if c.other {
			saved += r.add(other, &g, 1)
			continue
		}
		saved += r.add(one, &g, 1)
		sent = append(sent, data...)
	}
	return p, saved + r.end(1), sent
}

// withPayload makes a frame without one that with b.
func withPayload(f, b []byte) []byte {
	f = append(f, b...)
	ip := header.IPv4(f[ethLen:])
	ip.SetTotalLength(uint16(len(ip)))
	ip.SetChecksum(0)
	ip.SetChecksum(^ip.CalculateChecksum())
	h := f[ethLen+ipv4Len:]
	binary.BigEndian.PutUint16(h[header.TCPChecksumOffset:], 0)
	g := inbound{frame: f}
	binary.BigEndian.PutUint16(h[header.TCPChecksumOffset:], ^g.sum())
	return f
}

func TestRun(t *testing.T) {
	const psh = header.TCPFlagPsh
	many := func(n int) (out []piece, sizes []int) {
		size := 0
		for i := range n {
			out = append(out, piece{flags: ack, seq: uint32(i * 1448), payload: 1448})
			if size+1448+ipv4Len+tcpLen > maxRun {
				sizes, size = append(sizes, size), 0
			}
			size += 1448
		}
		return out, append(sizes, size)
	}
	batch, cut := many(64)
	for _, c := range []struct {
		name    string
		pieces  []piece
		sizes   []int
		trusted int
	}{
		{"one", []piece{{flags: ack, payload: 10}}, []int{10}, 0},
		{"three", []piece{{flags: ack, payload: 10}, {flags: ack, seq: 10, payload: 20}, {flags: ack | psh, seq: 30, payload: 5}}, []int{35}, 1},
		{"over the end of the numbers", []piece{{flags: ack, seq: 1<<32 - 10, payload: 10}, {flags: ack, payload: 20}}, []int{30}, 1},
		{"stamped", []piece{{flags: ack, payload: 10, stamp: 7}, {flags: ack, seq: 10, payload: 20, stamp: 7}}, []int{30}, 1},
		{"other stamps", []piece{{flags: ack, payload: 10, stamp: 7}, {flags: ack, seq: 10, payload: 20, stamp: 8}}, []int{10, 20}, 0},
		{"stamped or not", []piece{{flags: ack, payload: 10, stamp: 7}, {flags: ack, seq: 10, payload: 20}}, []int{10, 20}, 0},
		{"a gap", []piece{{flags: ack, payload: 10}, {flags: ack, seq: 11, payload: 20}}, []int{10, 20}, 0},
		{"one again", []piece{{flags: ack, payload: 10}, {flags: ack, payload: 10}}, []int{10, 10}, 0},
		{"a push between", []piece{{flags: ack | psh, payload: 10}, {flags: ack, seq: 10, payload: 20}}, []int{10, 20}, 0},
		{"the end", []piece{{flags: ack, payload: 10}, {flags: ack | fin, seq: 10, payload: 20}}, []int{10, 20}, 0},
		{"an acknowledgement between", []piece{{flags: ack, payload: 10}, {flags: ack, seq: 10}, {flags: ack, seq: 10, payload: 5}}, []int{10, 0, 5}, 0},
		{"another connection between", []piece{{flags: ack, payload: 10}, {flags: ack, payload: 3, other: true}, {flags: ack, seq: 10, payload: 5}}, []int{10, 5}, 0},
		{"a broken one", []piece{{flags: ack, payload: 10}, {flags: ack, seq: 10, payload: 20, spoil: 3}, {flags: ack, seq: 30, payload: 5}}, []int{10, 20, 5}, 0},
		{"a full batch", batch, cut, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, saved, sent := play(c.pieces)
			if !bytes.Equal(p.data, sent) {
				t.Error("the data differs")
			}
			if len(p.sizes) != len(c.sizes) {
				t.Fatalf("packets of %v bytes, want %v", p.sizes, c.sizes)
			}
			for i := range c.sizes {
				if p.sizes[i] != c.sizes[i] {
					t.Errorf("packets of %v bytes, want %v", p.sizes, c.sizes)
				}
			}
			if p.trusted != c.trusted {
				t.Errorf("%d packets need no look at the checksum, want %d", p.trusted, c.trusted)
			}
			others := 0
			for _, q := range c.pieces {
				if q.other {
					others++
				}
			}
			if saved != len(c.pieces)-others-len(c.sizes) {
				t.Errorf("%d segments spared", saved)
			}
			if last := c.pieces[len(c.pieces)-1].flags; p.flags[len(p.flags)-1] != last {
				t.Errorf("the last packet has %v, want %v", p.flags[len(p.flags)-1], last)
			}
		})
	}
}

// Whatever comes, every byte is handed over once and in the order it came in.
func TestRunKeepsOrder(t *testing.T) {
	for range 300 {
		var pieces []piece
		seq := rand.Uint32()
		for range 1 + rand.IntN(100) {
			c := piece{flags: ack, seq: seq, payload: rand.IntN(1449)}
			if rand.IntN(8) == 0 {
				c.flags |= header.TCPFlagPsh
			}
			if rand.IntN(10) == 0 {
				c.seq -= uint32(rand.IntN(3000))
			}
			if rand.IntN(12) == 0 {
				c.other = true
			} else {
				seq = c.seq + uint32(c.payload)
			}
			if c.payload > 0 && !c.other && rand.IntN(30) == 0 {
				c.spoil = 1 + rand.IntN(c.payload)
			}
			pieces = append(pieces, c)
		}
		p, _, sent := play(pieces)
		if !bytes.Equal(p.data, sent) {
			t.Fatalf("the data differs: %+v", pieces)
		}
	}
}

// The batch of a busy connection must not make garbage; what is handed over is
// the stack's, from its pools.
func TestRunAllocates(t *testing.T) {
	var r run
	fl := &flow{tcp: nobody{}}
	var batch []inbound
	for i := range 32 {
		g, _ := parse(withPayload(segment(ack, uint32(i*1000), 0, 0), make([]byte, 1000)))
		batch = append(batch, g)
	}
	receive := func() {
		for i := range batch {
			r.add(fl, &batch[i], 1)
		}
		r.end(1)
	}
	receive()
	if n := testing.AllocsPerRun(100, receive); n != 0 {
		t.Errorf("%.1f allocations for 32 segments", n)
	}
}

// nobody takes packets.
type nobody struct{}

func (nobody) QueuePacket(stack.TransportEndpoint, stack.TransportEndpointID, *stack.PacketBuffer) {}

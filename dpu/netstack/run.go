// SPDX-License-Identifier: Apache-2.0

package netstack

import (
	"bytes"
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// run is segments of one connection that came one behind the other, in one batch
// of frames: they go through the stack as one, which costs it as much as for
// each. Only what differs in nothing but its place in the stream is taken
// together, so that the stack sees what it would have seen, but for the number: what
// comes beyond a gap is acknowledged once for the run, which tells a peer without
// SACK of a loss later. The frames are the device's; they are copied when the run
// ends, with the batch at the latest.
//
// It belongs to the loop.
type run struct {
	fl   *flow
	segs []inbound
	size int    // of the payload
	next uint32 // the sequence number that follows
}

// maxRun is what an IP packet may be long.
const maxRun = 1<<16 - 1

func (g *inbound) payload() []byte { return g.tcp()[g.hdr:] }
func (g *inbound) flags() header.TCPFlags {
	return header.TCPFlags(g.tcp()[header.TCPFlagsOffset])
}

// data tells whether the segment is nothing but data.
func (g *inbound) data() bool {
	return g.flags()&^header.TCPFlagPsh == header.TCPFlagAck && len(g.frame) > ethLen+ipv4Len+g.hdr
}

// add takes a segment of fl's in, or first ends the run that it does not continue.
func (r *run) add(fl *flow, g *inbound, nic tcpip.NICID) (saved int) {
	if len(r.segs) > 0 && (r.fl != fl || !r.continues(g)) {
		saved = r.end(nic)
	}
	n := len(g.payload())
	r.fl, r.segs, r.size = fl, append(r.segs, *g), r.size+n
	r.next = binary.BigEndian.Uint32(g.tcp()[4:]) + uint32(n)
	// A sender pushes what he has come to the end of.
	if !g.data() || g.flags()&header.TCPFlagPsh != 0 {
		saved += r.end(nic)
	}
	return saved
}

// continues tells whether g differs from what there is only by coming next.
func (r *run) continues(g *inbound) bool {
	first := &r.segs[0]
	a, b := first.tcp(), g.tcp()
	return g.data() && binary.BigEndian.Uint32(b[4:]) == r.next && g.hdr == first.hdr &&
		ipv4Len+g.hdr+r.size+len(g.payload()) <= maxRun &&
		bytes.Equal(a[8:12], b[8:12]) && // acknowledgement
		bytes.Equal(a[14:16], b[14:16]) && // window
		bytes.Equal(a[18:g.hdr], b[18:g.hdr]) && // options
		g.frame[ethLen+1] == first.frame[ethLen+1] && g.frame[ethLen+8] == first.frame[ethLen+8] // ECN, TTL
}

// end hands the run to its endpoint. It returns how many segments the stack is
// spared.
func (r *run) end(nic tcpip.NICID) (saved int) {
	if len(r.segs) == 0 {
		return 0
	}
	if len(r.segs) > 1 && r.sound() {
		r.queue(nic)
		saved = len(r.segs) - 1
	} else {
		for i := range r.segs {
			r.segs[i].queue(r.fl.tcp, r.fl.ep, nic)
		}
	}
	clear(r.segs)
	r.fl, r.segs, r.size = nil, r.segs[:0], 0
	return saved
}

// sound tells whether all checksums are right. The stack cannot look any more;
// those that are not it shall count.
func (r *run) sound() bool {
	for i := range r.segs {
		if !r.segs[i].sound() {
			return false
		}
	}
	return true
}

// queue hands the run over as one segment.
func (r *run) queue(nic tcpip.NICID) {
	first, last := &r.segs[0], &r.segs[len(r.segs)-1]
	headers := ethLen + ipv4Len + first.hdr
	v := buffer.NewViewSize(headers + r.size)
	b := v.AsSlice()
	at := copy(b, first.frame[:headers])
	for i := range r.segs {
		at += copy(b[at:], r.segs[i].payload())
	}
	binary.BigEndian.PutUint16(b[ethLen+2:], uint16(len(b)-ethLen))
	b[ethLen+ipv4Len+header.TCPFlagsOffset] |= uint8(last.flags())
	p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithView(v)})
	p.RXChecksumValidated = true
	queuePacket(p, first.hdr, r.fl.tcp, r.fl.ep, first.id(), nic)
}

// SPDX-License-Identifier: Apache-2.0

package netstack

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// cutter turns a packet of the stack into frames. TCP hands down segments of
// up to 64 KiB as to a card that segments (TSO), with no checksum: the way
// through the stack costs as much for 64 KiB as for one frame. They are cut
// where they are copied to the wire's frames anyway, and the checksum is made
// of bytes that the copy has just brought into the cache.
//
// It belongs to the loop.
type cutter struct {
	pkt  *stack.PacketBuffer // nil: nothing to do
	view *buffer.View        // where the rest begins
	skip int                 // bytes of view that are behind it
	rest int                 // bytes of payload to go
	mss  int                 // payload of a frame; 0: the packet is a frame as it is

	hdr    [maxHeaders]byte // of the next frame
	l3, l4 int              // where the IP and the TCP header begin in it
	len    int              // of all headers
	pseudo uint16           // checksum of the addresses and the protocol
}

// maxHeaders is room for the longest headers that are cut: Ethernet, IPv6 with
// an extension, TCP with all options.
const maxHeaders = 160

// busy tells whether frames are left.
func (c *cutter) busy() bool { return c.pkt != nil }

// frames is how many are left.
func (c *cutter) frames() int {
	if c.mss == 0 {
		return 1
	}
	return max((c.rest+c.mss-1)/c.mss, 1)
}

// load takes over a reference on p.
func (c *cutter) load(p *stack.PacketBuffer) {
	views, skip := p.AsViewList()
	c.pkt, c.view, c.skip, c.mss = p, views.Front(), skip, 0
	c.rest = p.Size()
	if g := &p.GSOOptions; g.NeedsCsum && (g.Type == stack.GSOTCPv4 || g.Type == stack.GSOTCPv6) {
		c.headers(g)
	}
}

// headers takes the packet's headers as the pattern of its frames'.
func (c *cutter) headers(g *stack.GSO) {
	size, transport := c.pkt.HeaderSize(), len(c.pkt.TransportHeader().Slice())
	c.l3, c.l4, c.len = ethLen, size-transport, size
	if size > maxHeaders || transport < tcpLen || c.l4 < ethLen+ipv4Len {
		return // the stack makes no such headers
	}
	c.advance(c.hdr[:size], size)
	if g.Type == stack.GSOTCPv4 {
		c.pseudo = checksum.Checksum(c.hdr[c.l3+12:c.l3+20], uint16(header.TCPProtocolNumber))
	} else {
		c.pseudo = checksum.Checksum(c.hdr[c.l3+8:c.l3+40], uint16(header.TCPProtocolNumber))
	}
	c.mss = max(int(g.MSS), 1)
}

// frame writes the next frame into f and returns its length.
func (c *cutter) frame(f []byte) (n int) {
	if c.mss == 0 {
		n = min(c.rest, len(f))
		c.advance(f[:n], n)
		c.rest = 0
	} else {
		n = c.segment(f)
	}
	if c.rest == 0 {
		c.drop()
	}
	return n
}

// drop lets go of the packet.
func (c *cutter) drop() {
	c.pkt.DecRef()
	c.pkt, c.view = nil, nil
}

// segment writes the next frame of a TCP segment.
func (c *cutter) segment(f []byte) int {
	n := min(c.mss, c.rest, len(f)-c.len)
	if n < 0 || n == 0 && c.rest > 0 { // the link's MTU is less than the stack was told
		c.rest = 0
		return 0
	}
	c.patch(n, c.rest == n)
	copy(f, c.hdr[:c.len])
	c.advance(f[c.len:c.len+n], n)
	end := c.len + n
	tcp := f[c.l4:end]
	sum := checksum.Checksum(tcp, checksum.Combine(c.pseudo, uint16(len(tcp))))
	binary.BigEndian.PutUint16(tcp[header.TCPChecksumOffset:], ^sum)
	if c.rest > 0 {
		c.next(n)
	}
	return end
}

// patch makes the headers those of a frame with n bytes of payload. Only the
// last frame says that the sender has no more for now: a receiver that merges
// segments would stop at each that does.
func (c *cutter) patch(n int, last bool) {
	ip, tcp := c.hdr[c.l3:c.l4], c.hdr[c.l4:c.len]
	if c.pkt.GSOOptions.Type == stack.GSOTCPv4 {
		h := header.IPv4(ip)
		h.SetTotalLength(uint16(c.len - c.l3 + n))
		h.SetChecksum(0)
		h.SetChecksum(^h.CalculateChecksum())
	} else {
		header.IPv6(ip).SetPayloadLength(uint16(c.len - c.l3 - header.IPv6MinimumSize + n))
	}
	flags := uint8(c.pkt.TransportHeader().Slice()[header.TCPFlagsOffset])
	if !last {
		flags &^= uint8(header.TCPFlagPsh | header.TCPFlagFin)
	}
	tcp[header.TCPFlagsOffset] = flags
	tcp[header.TCPChecksumOffset], tcp[header.TCPChecksumOffset+1] = 0, 0
}

// next makes the headers those of the frame after one with n bytes.
func (c *cutter) next(n int) {
	if c.pkt.GSOOptions.Type == stack.GSOTCPv4 {
		h := header.IPv4(c.hdr[c.l3:c.l4])
		h.SetID(h.ID() + 1)
	}
	tcp := header.TCP(c.hdr[c.l4:c.len])
	tcp.SetSequenceNumber(tcp.SequenceNumber() + uint32(n))
}

// advance takes n bytes off the packet, into b if it is not nil.
func (c *cutter) advance(b []byte, n int) {
	c.rest -= n
	for n > 0 && c.view != nil {
		v := c.view.AsSlice()
		if c.skip >= len(v) {
			c.skip -= len(v)
			c.view = c.view.Next()
			continue
		}
		m := min(n, len(v)-c.skip)
		if b != nil {
			b = b[copy(b, v[c.skip:c.skip+m]):]
		}
		c.skip += m
		n -= m
	}
}

// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"encoding/binary"
	"fmt"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// Size is that of a request and of its answer.
const Size = 64

// client is a connection that asks, counts the bytes of the answer, and asks
// again. The wire loses nothing and keeps the order, so this is all the TCP
// that it needs; its next request acknowledges the answer.
type client struct {
	port     uint16
	seq, ack uint32
	got      int // bytes of the answer under way
	open     bool
	over     bool // the server has ended it
}

const (
	ethLen  = header.EthernetMinimumSize
	ipLen   = header.IPv4MinimumSize
	tcpLen  = header.TCPMinimumSize
	headLen = ethLen + ipLen + tcpLen
)

// turn takes what came and sends what is due, and returns how many frames.
func (c *clients) turn(begin bool) (n int, err error) {
	if begin && !c.begun {
		c.begun = true
		for _, one := range c.byPort {
			c.due = append(c.due, one)
		}
	}
	n, err = c.queue.Recv(c.frames[:])
	if err != nil {
		return n, fmt.Errorf("receive: %w", err)
	}
	for _, f := range c.frames[:n] {
		if err := c.take(f); err != nil {
			return n, err
		}
	}
	if n > 0 {
		c.queue.Release()
	}
	sent := 0
	for ; sent < len(c.due); sent++ {
		f := c.queue.TxAlloc()
		if f == nil {
			break
		}
		one := c.due[sent]
		c.queue.TxCommit(c.frame(f, one))
		if one.over {
			delete(c.byPort, one.port)
			c.begin(one)
			c.due = append(c.due, one)
		}
	}
	c.due = append(c.due[:0], c.due[sent:]...)
	if sent > 0 || c.queue.TxPending() {
		if err := c.queue.Flush(); err != nil {
			return n, fmt.Errorf("send: %w", err)
		}
	}
	return n + sent, nil
}

// begin makes a connection of the next port. Its sequence numbers are beyond
// those of the port's last one, which may be in TIME-WAIT.
func (c *clients) begin(one *client) {
	round := c.used / len(c.ports)
	*one = client{port: c.ports[c.used%len(c.ports)], seq: uint32(round) << 16}
	c.used++
	c.byPort[one.port] = one
}

// take handles a frame from the DPU.
func (c *clients) take(f []byte) error {
	switch {
	case len(f) >= ethLen+header.ARPSize && header.Ethernet(f).Type() == header.ARPProtocolNumber:
		c.resolve(header.ARP(f[ethLen:]))
		return nil
	case len(f) < headLen || header.Ethernet(f).Type() != header.IPv4ProtocolNumber:
		return nil
	}
	ip := header.IPv4(f[ethLen:])
	if ip.TransportProtocol() != header.TCPProtocolNumber || int(ip.TotalLength()) > len(ip) {
		return nil
	}
	t := header.TCP(ip[ip.HeaderLength():ip.TotalLength()])
	one := c.byPort[t.DestinationPort()]
	if one == nil {
		return nil
	}
	switch flags, n := t.Flags(), len(t)-int(t.DataOffset()); {
	case flags&header.TCPFlagRst != 0 || flags&header.TCPFlagFin != 0 && !c.short:
		return fmt.Errorf("connection from port %d ended with %v", one.port, flags)
	case flags&header.TCPFlagSyn != 0:
		if one.open {
			return nil // a duplicate
		}
		one.open, one.ack, one.seq = true, t.SequenceNumber()+1, one.seq+1
		c.due = append(c.due, one)
	case t.SequenceNumber() == one.ack:
		c.answer(one, n, flags&header.TCPFlagFin != 0)
	}
	return nil
}

// answer takes the next bytes of an answer, or the end after it.
func (c *clients) answer(one *client, n int, fin bool) {
	one.ack += uint32(n)
	one.got += n
	if fin {
		one.ack++
		one.over = true
	}
	if n == 0 && !fin || one.got < Size || c.short && !fin {
		return
	}
	one.got = 0
	c.answered.Add(1)
	c.due = append(c.due, one)
}

// resolve answers the DPU's search for the clients' address. The queue has
// room: nothing else is under way so early.
func (c *clients) resolve(q header.ARP) {
	me := c.me.As4()
	if q.Op() != header.ARPRequest || [4]byte(q.ProtocolAddressTarget()) != me {
		return
	}
	f := c.queue.TxAlloc()
	if f == nil {
		return
	}
	header.Ethernet(f).Encode(&header.EthernetFields{
		SrcAddr: hardware(c.macs[1]), DstAddr: hardware(c.macs[0]), Type: header.ARPProtocolNumber,
	})
	a := header.ARP(f[ethLen:])
	a.SetIPv4OverEthernet()
	a.SetOp(header.ARPReply)
	copy(a.HardwareAddressSender(), c.macs[1][:])
	copy(a.ProtocolAddressSender(), me[:])
	copy(a.HardwareAddressTarget(), q.HardwareAddressSender())
	copy(a.ProtocolAddressTarget(), q.ProtocolAddressSender())
	c.queue.TxCommit(ethLen + header.ARPSize)
}

// frame writes a client's next frame: a SYN, a request, or a FIN.
func (c *clients) frame(f []byte, one *client) int {
	flags, n := header.TCPFlagSyn, 0
	switch {
	case one.over:
		flags = header.TCPFlagAck | header.TCPFlagFin
	case one.open:
		flags, n = header.TCPFlagAck|header.TCPFlagPsh, Size
	}
	header.Ethernet(f).Encode(&header.EthernetFields{
		SrcAddr: hardware(c.macs[1]), DstAddr: hardware(c.macs[0]), Type: header.IPv4ProtocolNumber,
	})
	src, dst := c.me.As4(), c.server.Addr().As4()
	ip := f[ethLen:]
	clear(ip[:ipLen+tcpLen])
	ip[0], ip[8], ip[9] = 0x45, 64, uint8(header.TCPProtocolNumber)
	binary.BigEndian.PutUint16(ip[2:], uint16(ipLen+tcpLen+n))
	copy(ip[12:], src[:])
	copy(ip[16:], dst[:])
	binary.BigEndian.PutUint16(ip[10:], ^checksum.Checksum(ip[:ipLen], 0))
	t := ip[ipLen : ipLen+tcpLen+n]
	binary.BigEndian.PutUint16(t, one.port)
	binary.BigEndian.PutUint16(t[2:], c.server.Port())
	binary.BigEndian.PutUint32(t[4:], one.seq)
	binary.BigEndian.PutUint32(t[8:], one.ack)
	t[12], t[13] = tcpLen/4<<4, uint8(flags)
	binary.BigEndian.PutUint16(t[14:], 65535)
	for i := range t[tcpLen:] {
		t[tcpLen+i] = byte(i)
	}
	sum := checksum.Checksum(ip[12:20], uint16(header.TCPProtocolNumber))
	sum = checksum.Combine(sum, uint16(len(t)))
	binary.BigEndian.PutUint16(t[16:], ^checksum.Checksum(t, sum))
	if one.open {
		one.seq += uint32(n)
	}
	return headLen + n
}

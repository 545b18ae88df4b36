// SPDX-License-Identifier: Apache-2.0

package offload

import (
	"encoding/binary"
	"errors"
	"net/netip"
)

// ErrProtocol is wrapped by every violation of the channel protocol by the
// other side. It ends the session.
var ErrProtocol = errors.New("channel protocol violation")

// ErrShort is returned by the decoders of payloads for too few bytes.
var ErrShort = errors.New("payload too short")

// ErrTooLong is returned by GetDgram for more data than a datagram can have.
var ErrTooLong = errors.New("datagram too long")

var le = binary.LittleEndian

// Encoded sizes of the payload structures, in bytes.
const (
	AddrSize       = 24
	AddrPairSize   = 2 * AddrSize
	BindReqSize    = AddrSize + 8
	ConnectReqSize = 2*AddrSize + 8
	OptValSize     = 256
	ForkReqSize    = 16
	MoveReqSize    = 16
	DgramInfoSize  = 2*AddrSize + 8
	DgramSize      = 2*AddrSize + 16
)

// PutRecord encodes r into the first RecordHdr bytes of b.
func PutRecord(b []byte, r Record) {
	_ = b[RecordHdr-1]
	b[0], b[1] = byte(r.Op), r.Flags
	le.PutUint16(b[2:], r.Len)
	le.PutUint32(b[4:], r.Sock)
	le.PutUint32(b[8:], r.Seq)
	le.PutUint32(b[12:], r.Ack)
}

// GetRecord decodes the first RecordHdr bytes of b.
func GetRecord(b []byte) Record {
	_ = b[RecordHdr-1]
	return Record{
		Op: Op(b[0]), Flags: b[1], Len: le.Uint16(b[2:]),
		Sock: le.Uint32(b[4:]), Seq: le.Uint32(b[8:]), Ack: le.Uint32(b[12:]),
	}
}

// RecordSpace is the ring bytes that a record with n payload bytes takes.
func RecordSpace(n int) int {
	return (RecordHdr + n + RecordAlign - 1) &^ (RecordAlign - 1)
}

// AddrFrom converts a netip endpoint. An invalid address gives Family 0 with
// the port kept.
func AddrFrom(ap netip.AddrPort) Addr {
	a := Addr{Port: ap.Port()}
	ip := ap.Addr()
	switch {
	case ip.Is4(), ip.Is4In6():
		a.Family = 4
		b := ip.Unmap().As4()
		copy(a.IP[:], b[:])
	case ip.Is6():
		a.Family = 6
		a.IP = ip.As16()
	}
	return a
}

// AddrPort is the inverse of AddrFrom; Family 0 gives an invalid address.
func (a Addr) AddrPort() netip.AddrPort {
	switch a.Family {
	case 4:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(a.IP[:4])), a.Port)
	case 6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.IP), a.Port)
	}
	return netip.AddrPortFrom(netip.Addr{}, a.Port)
}

// Put encodes a into b, AddrSize bytes.
func (a Addr) Put(b []byte) {
	_ = b[AddrSize-1]
	le.PutUint16(b, a.Family)
	le.PutUint16(b[2:], a.Port)
	le.PutUint32(b[4:], a.Scope)
	copy(b[8:24], a.IP[:])
}

// GetAddr decodes an Addr.
func GetAddr(b []byte) (Addr, error) {
	if len(b) < AddrSize {
		return Addr{}, ErrShort
	}
	a := Addr{Family: le.Uint16(b), Port: le.Uint16(b[2:]), Scope: le.Uint32(b[4:])}
	copy(a.IP[:], b[8:24])
	return a, nil
}

// Put encodes p into b, AddrPairSize bytes.
func (p AddrPair) Put(b []byte) {
	p.Local.Put(b)
	p.Peer.Put(b[AddrSize:])
}

// GetAddrPair decodes an AddrPair.
func GetAddrPair(b []byte) (p AddrPair, err error) {
	if len(b) < AddrPairSize {
		return p, ErrShort
	}
	p.Local, _ = GetAddr(b)
	p.Peer, _ = GetAddr(b[AddrSize:])
	return p, nil
}

// Put encodes r into b, BindReqSize bytes.
func (r BindReq) Put(b []byte) {
	r.Local.Put(b)
	le.PutUint32(b[AddrSize:], r.Proto)
	le.PutUint32(b[AddrSize+4:], r.Flags)
}

// GetBindReq decodes a BindReq.
func GetBindReq(b []byte) (r BindReq, err error) {
	if len(b) < BindReqSize {
		return r, ErrShort
	}
	r.Local, _ = GetAddr(b)
	r.Proto, r.Flags = le.Uint32(b[AddrSize:]), le.Uint32(b[AddrSize+4:])
	return r, nil
}

// Put encodes r into b, ConnectReqSize bytes.
func (r ConnectReq) Put(b []byte) {
	r.Local.Put(b)
	r.Peer.Put(b[AddrSize:])
	le.PutUint32(b[2*AddrSize:], r.Proto)
	le.PutUint32(b[2*AddrSize+4:], r.Flags)
}

// GetConnectReq decodes a ConnectReq.
func GetConnectReq(b []byte) (r ConnectReq, err error) {
	if len(b) < ConnectReqSize {
		return r, ErrShort
	}
	r.Local, _ = GetAddr(b)
	r.Peer, _ = GetAddr(b[AddrSize:])
	r.Proto, r.Flags = le.Uint32(b[2*AddrSize:]), le.Uint32(b[2*AddrSize+4:])
	return r, nil
}

// Put encodes i into b, DgramInfoSize bytes.
func (i DgramInfo) Put(b []byte) {
	i.Local.Put(b)
	i.Peer.Put(b[AddrSize:])
	le.PutUint32(b[2*AddrSize:], i.MTU)
	le.PutUint32(b[2*AddrSize+4:], 0)
}

// GetDgramInfo decodes a DgramInfo.
func GetDgramInfo(b []byte) (i DgramInfo, err error) {
	if len(b) < DgramInfoSize {
		return i, ErrShort
	}
	i.Local, _ = GetAddr(b)
	i.Peer, _ = GetAddr(b[AddrSize:])
	i.MTU = le.Uint32(b[2*AddrSize:])
	return i, nil
}

// Put encodes d into b, DgramSize bytes.
func (d *Dgram) Put(b []byte) {
	_ = b[DgramSize-1]
	le.PutUint32(b, d.Len)
	le.PutUint16(b[4:], d.Segment)
	b[6], b[7] = d.Flags, d.TOS
	d.Peer.Put(b[8:])
	d.Local.Put(b[32:])
	le.PutUint32(b[56:], d.Index)
	b[60], b[61], b[62], b[63] = d.TTL, 0, 0, 0
}

// GetDgram decodes a Dgram and refuses a Len that no datagram has.
func GetDgram(b []byte) (d Dgram, err error) {
	if len(b) < DgramSize {
		return d, ErrShort
	}
	d = Dgram{Len: le.Uint32(b), Segment: le.Uint16(b[4:]), Flags: b[6], TOS: b[7], Index: le.Uint32(b[56:]), TTL: b[60]}
	if d.Len > MaxDgram {
		return d, ErrTooLong
	}
	d.Peer, _ = GetAddr(b[8:])
	d.Local, _ = GetAddr(b[32:])
	return d, nil
}

// Put encodes m into b, MoveReqSize bytes.
func (m MoveReq) Put(b []byte) {
	_ = b[MoveReqSize-1]
	le.PutUint32(b, m.From)
	le.PutUint32(b[4:], m.Off)
	le.PutUint32(b[8:], m.Len)
	le.PutUint32(b[12:], m.Reserved)
}

// GetMoveReq decodes a MoveReq.
func GetMoveReq(b []byte) (m MoveReq, err error) {
	if len(b) < MoveReqSize {
		return m, ErrShort
	}
	return MoveReq{From: le.Uint32(b), Off: le.Uint32(b[4:]), Len: le.Uint32(b[8:]), Reserved: le.Uint32(b[12:])}, nil
}

// Put encodes o into b, OptValSize bytes.
func (o *OptVal) Put(b []byte) {
	le.PutUint32(b, o.Level)
	le.PutUint32(b[4:], o.Name)
	le.PutUint32(b[8:], o.Len)
	le.PutUint32(b[12:], o.Reserved)
	copy(b[16:OptValSize], o.Val[:])
}

// GetOptVal decodes an OptVal and refuses a Len beyond its value.
func GetOptVal(b []byte) (o OptVal, err error) {
	if len(b) < OptValSize {
		return o, ErrShort
	}
	o = OptVal{Level: le.Uint32(b), Name: le.Uint32(b[4:]), Len: le.Uint32(b[8:]), Reserved: le.Uint32(b[12:])}
	if o.Len > uint32(len(o.Val)) {
		return o, ErrShort
	}
	copy(o.Val[:], b[16:])
	return o, nil
}

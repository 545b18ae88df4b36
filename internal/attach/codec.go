// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"pno/offload"
)

// ErrMessage is wrapped by every error about a malformed message: it ends the
// connection that it came on.
var ErrMessage = errors.New("malformed attach message")

const headerSize = 16

// MaxMessage bounds every packet.
const MaxMessage = 88 + MaxRules*32

func newMessage(t Type) Message {
	switch t {
	case TypeHello:
		return new(Hello)
	case TypeWelcome:
		return new(Welcome)
	case TypeRefused:
		return new(Refused)
	case TypeChannelOpen:
		return new(ChannelOpen)
	case TypeChannel:
		return new(Channel)
	case TypeForked:
		return new(Forked)
	case TypeRegisterSocket:
		return new(RegisterSocket)
	case TypeUnregisterSocket:
		return new(UnregisterSocket)
	case TypeLookupSocket:
		return new(LookupSocket)
	case TypeSocket:
		return new(Socket)
	case TypeReady:
		return new(Ready)
	case TypeAck:
		return new(Ack)
	case TypeBypass:
		return new(Bypass)
	}
	return nil
}

func typeOf(m Message) Type {
	switch m.(type) {
	case *Hello:
		return TypeHello
	case *Welcome:
		return TypeWelcome
	case *Refused:
		return TypeRefused
	case *ChannelOpen:
		return TypeChannelOpen
	case *Channel:
		return TypeChannel
	case *Forked:
		return TypeForked
	case *RegisterSocket:
		return TypeRegisterSocket
	case *UnregisterSocket:
		return TypeUnregisterSocket
	case *LookupSocket:
		return TypeLookupSocket
	case *Socket:
		return TypeSocket
	case *Ready:
		return TypeReady
	case *Bypass:
		return TypeBypass
	}
	return TypeAck
}

// Encode fills in the header, with the id of the request that m answers or
// makes, and returns the packet.
func Encode(m Message, id uint32) []byte {
	size := binary.Size(m)
	*m.header() = Header{Magic: Magic, Version: Version, Type: typeOf(m), Size: uint32(size), ID: id}
	b, err := binary.Append(make([]byte, 0, size), binary.LittleEndian, m)
	if err != nil {
		panic("attach: a message type without a fixed size: " + err.Error())
	}
	return b
}

// Decode parses one packet.
func Decode(b []byte) (Message, error) {
	if len(b) < headerSize {
		return nil, fmt.Errorf("%d bytes, shorter than a header: %w", len(b), ErrMessage)
	}
	if magic := binary.LittleEndian.Uint32(b); magic != Magic {
		return nil, fmt.Errorf("magic %#x: %w", magic, ErrMessage)
	}
	if v := binary.LittleEndian.Uint16(b[4:]); v != Version {
		return nil, fmt.Errorf("attach version %d, this side speaks %d: %w", v, Version, ErrMessage)
	}
	t := Type(binary.LittleEndian.Uint16(b[6:]))
	m := newMessage(t)
	if m == nil {
		return nil, fmt.Errorf("unknown type %d: %w", t, ErrMessage)
	}
	size := binary.LittleEndian.Uint32(b[8:])
	if want := binary.Size(m); len(b) != want || size != uint32(want) {
		return nil, fmt.Errorf("type %d in a packet of %d bytes that says %d, want %d: %w", t, len(b), size, want, ErrMessage)
	}
	if _, err := binary.Decode(b, binary.LittleEndian, m); err != nil {
		return nil, fmt.Errorf("%w: %v", ErrMessage, err)
	}
	if err := check(m); err != nil {
		return nil, fmt.Errorf("type %d: %w: %w", t, err, ErrMessage)
	}
	return m, nil
}

// check refuses values that no valid sender produces.
func check(m Message) error {
	switch m := m.(type) {
	case *Hello:
		if m.Flags&^(HelloToken|HelloProbe) != 0 {
			return fmt.Errorf("unknown flags %#x", m.Flags)
		}
		if m.Session != 0 && m.Flags != 0 {
			return errors.New("session and flags together")
		}
	case *Bypass:
		if m.Reason < BypassStatic || m.Reason > BypassMachine {
			return fmt.Errorf("reason %d", m.Reason)
		}
	case *ChannelOpen:
		if m.Channel == 0 || m.Channel >= offload.MaxChannels {
			return fmt.Errorf("channel %d, want 1 to %d", m.Channel, offload.MaxChannels-1)
		}
	case *Welcome:
		if m.NRules > MaxRules {
			return fmt.Errorf("%d rules, at most %d", m.NRules, MaxRules)
		}
	case *RegisterSocket:
		return m.check(m.Cookie)
	case *Socket:
		return m.check(m.Cookie)
	case *Forked:
		if m.PID < 0 {
			return fmt.Errorf("process %d", m.PID)
		}
	}
	return nil
}

func (s *SocketInfo) check(cookie uint64) error {
	switch {
	case cookie == 0:
		return errors.New("cookie 0")
	case s.Kind < SockListener || s.Kind > SockBound:
		return fmt.Errorf("socket kind %d", s.Kind)
	case s.Shard >= offload.MaxShards:
		return fmt.Errorf("shard %d, at most %d", s.Shard, offload.MaxShards-1)
	}
	for _, a := range []offload.Addr{s.Local, s.Peer} {
		if a.Family != 0 && a.Family != 4 && a.Family != 6 {
			return fmt.Errorf("address family %d", a.Family)
		}
	}
	return nil
}

// Text returns what a NUL-padded field holds, with anything unprintable
// replaced: it goes to logs and terminals.
func Text(field []byte) string {
	if i := bytes.IndexByte(field, 0); i >= 0 {
		field = field[:i]
	}
	out := make([]byte, len(field))
	for i, c := range field {
		if c < 0x20 || c > 0x7e {
			c = '?'
		}
		out[i] = c
	}
	return string(out)
}

// SetText fills a NUL-padded field, cutting what does not fit.
func SetText(field []byte, s string) {
	clear(field)
	copy(field[:len(field)-1], s)
}

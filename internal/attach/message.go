// SPDX-License-Identifier: Apache-2.0

package attach

import "pno/offload"

// Constants of shim/attach.h.
const (
	Magic   = 0x41304e50
	Version = 1

	DefaultPath = "/run/pno/hostd.sock"

	MaxRules  = 128
	NameLen   = 64
	TextLen   = 232
	TokenLen  = 16
	PolicyLen = 256
)

// Type tells what a message is.
type Type uint16

// Message types.
const (
	TypeHello            Type = 1
	TypeWelcome          Type = 2
	TypeRefused          Type = 3
	TypeChannelOpen      Type = 4
	TypeChannel          Type = 5
	TypeForked           Type = 6
	TypeRegisterSocket   Type = 7
	TypeUnregisterSocket Type = 8
	TypeLookupSocket     Type = 9
	TypeSocket           Type = 10
	TypeReady            Type = 11
	TypeAck              Type = 12
	TypeBypass           Type = 13
)

// Flags and enumerations.
const (
	HelloToken = 1 // Hello.Flags: Token is valid
	HelloProbe = 2 // Hello.Flags: no session, only ask whether one would be given

	BypassStatic     = 1 // Bypass.Reason
	BypassPrivileged = 2
	BypassMachine    = 3

	RuleListen  = 1 // Rule.Ops
	RuleConnect = 2

	SockListener = 1 // Socket.Kind
	SockConn     = 2
	SockBound    = 3
)

// Header is first in every message; Size counts the whole message.
type Header struct {
	Magic   uint32 `c:"magic"`
	Version uint16 `c:"version"`
	Type    Type   `c:"type"`
	Size    uint32 `c:"size"`
	ID      uint32 `c:"id"`
}

// Hello is a process's first message.
type Hello struct {
	H        Header          `c:"h"`
	ABIMajor uint16          `c:"abi_major"`
	ABIMinor uint16          `c:"abi_minor"`
	Flags    uint32          `c:"flags"`
	Features uint64          `c:"features"`
	Session  uint64          `c:"session"` // 0, or the session to re-adopt: its memory and interrupts come with it
	Token    [TokenLen]byte  `c:"token"`
	Name     [NameLen]byte   `c:"name"`
	Policy   [PolicyLen]byte `c:"policy"`
}

// Rule is one entry of a policy as the shim walks it.
type Rule struct {
	Action    uint8    `c:"action"`
	Ops       uint8    `c:"ops"`
	Family    uint8    `c:"family"`
	Proto     uint8    `c:"proto"`
	Prefix    uint8    `c:"prefix"`
	Reserved0 uint8    `c:"reserved0"`
	PortLo    uint16   `c:"port_lo"`
	PortHi    uint16   `c:"port_hi"`
	Reserved1 uint16   `c:"reserved1"`
	ID        uint32   `c:"id"`
	Addr      [16]byte `c:"addr"`
}

// Welcome answers Hello. With it: session memory, one doorbell a shard, the
// interrupt of channel 0.
type Welcome struct {
	H             Header         `c:"h"`
	Session       uint64         `c:"session"`
	TotalSize     uint64         `c:"total_size"`
	ChannelStride uint64         `c:"channel_stride"`
	Features      uint64         `c:"features"`
	H2DSize       uint32         `c:"h2d_size"`
	D2HSize       uint32         `c:"d2h_size"`
	Channels      uint32         `c:"channels"`
	Shards        uint32         `c:"shards"`
	RxWindow      uint32         `c:"rx_window"`
	TxWindow      uint32         `c:"tx_window"`
	SpinNanos     uint32         `c:"spin_nanos"`
	ABIMinor      uint16         `c:"abi_minor"`
	DefaultAction uint8          `c:"default_action"`
	Reserved0     uint8          `c:"reserved0"`
	NRules        uint32         `c:"nrules"`
	Reserved1     uint32         `c:"reserved1"`
	Rules         [MaxRules]Rule `c:"rules"`
}

// Refused answers a request that failed.
type Refused struct {
	H        Header        `c:"h"`
	Err      int32         `c:"err"`
	Fallback uint8         `c:"fallback"`
	Reserved [3]byte       `c:"reserved"`
	Text     [TextLen]byte `c:"text"`
}

// ChannelOpen asks for the interrupt of one more channel; Channel answers it.
type ChannelOpen struct {
	H        Header `c:"h"`
	Channel  uint32 `c:"channel"`
	Reserved uint32 `c:"reserved"`
}

// Channel comes with the channel's interrupt eventfd.
type Channel struct {
	H        Header `c:"h"`
	Channel  uint32 `c:"channel"`
	Reserved uint32 `c:"reserved"`
}

// Forked names the process that holds the handles granted under a token.
type Forked struct {
	H        Header         `c:"h"`
	Token    [TokenLen]byte `c:"token"`
	PID      int32          `c:"pid"`
	Reserved uint32         `c:"reserved"`
}

// RegisterSocket tells that this session holds the socket of a cookie.
//
// A connection comes with the socket itself and the other end of its pair: when
// that hangs up, no process has the socket any more. The DPU keeps the
// connection under Token until then.
type RegisterSocket struct {
	H      Header `c:"h"`
	Cookie uint64 `c:"cookie"`
	SocketInfo
	Token [TokenLen]byte `c:"token"`
}

// Socket answers LookupSocket with the asking session's own handles.
type Socket struct {
	H      Header `c:"h"`
	Cookie uint64 `c:"cookie"`
	SocketInfo
}

// SocketInfo is what RegisterSocket and Socket have in common.
type SocketInfo struct {
	Kind    uint32                    `c:"kind"`
	Proto   uint32                    `c:"proto"`
	Shard   uint32                    `c:"shard"`
	Backlog uint32                    `c:"backlog"`
	Local   offload.Addr              `c:"local"`
	Peer    offload.Addr              `c:"peer"`
	Handle  [offload.MaxShards]uint32 `c:"handle"`
	Domain  uint32                    `c:"domain"` // of the program's socket, for a connection
	Pad     uint32                    `c:"reserved"`
}

// UnregisterSocket tells that this session holds the socket no more.
type UnregisterSocket struct {
	H      Header `c:"h"`
	Cookie uint64 `c:"cookie"`
}

// LookupSocket asks for the handles of a socket that came from elsewhere.
type LookupSocket struct {
	H      Header `c:"h"`
	Cookie uint64 `c:"cookie"`
}

// Ready tells that the process has looked up all it inherited.
type Ready struct {
	H Header `c:"h"`
}

// Ack answers with 0 or an errno.
type Ack struct {
	H        Header `c:"h"`
	Err      int32  `c:"err"`
	Reserved uint32 `c:"reserved"`
}

// Bypass, as a process's only message, tells that it is about to become a
// program that the shim will not be in.
type Bypass struct {
	H        Header          `c:"h"`
	Reason   uint32          `c:"reason"`
	Reserved uint32          `c:"reserved"`
	Program  [PolicyLen]byte `c:"program"`
}

// Message is any of the structs above, by pointer.
type Message interface{ header() *Header }

func (m *Hello) header() *Header            { return &m.H }
func (m *Welcome) header() *Header          { return &m.H }
func (m *Refused) header() *Header          { return &m.H }
func (m *ChannelOpen) header() *Header      { return &m.H }
func (m *Channel) header() *Header          { return &m.H }
func (m *Forked) header() *Header           { return &m.H }
func (m *RegisterSocket) header() *Header   { return &m.H }
func (m *UnregisterSocket) header() *Header { return &m.H }
func (m *LookupSocket) header() *Header     { return &m.H }
func (m *Socket) header() *Header           { return &m.H }
func (m *Ready) header() *Header            { return &m.H }
func (m *Ack) header() *Header              { return &m.H }
func (m *Bypass) header() *Header           { return &m.H }

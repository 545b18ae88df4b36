// SPDX-License-Identifier: Apache-2.0

package agent

// Numbers of protocol.h that this side uses by name.
const (
	Magic       = 0x43304e50
	Version     = 1
	DefaultPath = "/run/pno/agent.sock"
	MaxPacket   = 65536
	NameLen     = 64
	TextLen     = 200
	GraceMillis = 1000
)

// Type tells messages apart.
type Type uint16

// The messages of protocol.h.
const (
	TypeHello   Type = 1
	TypeWelcome Type = 2
	TypeRefused Type = 3
	TypeOp      Type = 4
	TypeResult  Type = 5
)

// Header comes first in every message.
type Header struct {
	Magic    uint32 `c:"magic"`
	Version  uint16 `c:"version"`
	Type     Type   `c:"type"`
	Size     uint32 `c:"size"`
	Reserved uint32 `c:"reserved"`
	ID       uint64 `c:"id"`
}

// Hello begins a connection.
type Hello struct {
	Header `c:"h"`
	PID    uint32        `c:"pid"`
	Flags  uint32        `c:"flags"`
	Name   [NameLen]byte `c:"name"`
}

// Welcome answers it.
type Welcome struct {
	Header           `c:"h"`
	MaxInflight      uint32 `c:"max_inflight"`
	MaxTimeoutMicros uint32 `c:"max_timeout_us"`
}

// Refused answers it, too, and ends the connection.
type Refused struct {
	Header   `c:"h"`
	Err      int32         `c:"err"`
	Reserved uint32        `c:"reserved"`
	Text     [TextLen]byte `c:"text"`
}

// OpHead is the fixed part of an operation; Len bytes of data follow, padded.
type OpHead struct {
	Header        `c:"h"`
	Key           [32]byte `c:"key_id"`
	TimeoutMicros uint32   `c:"timeout_us"`
	Scheme        uint16   `c:"scheme"`
	Input         uint16   `c:"input"`
	Len           uint32   `c:"len"`
	Reserved      uint32   `c:"reserved"`
}

// ResultHead is the fixed part of a result; Len bytes of data follow, padded.
type ResultHead struct {
	Header `c:"h"`
	Status uint16 `c:"status"`
	Len    uint16 `c:"len"`
	Micros uint32 `c:"micros"`
}

// Op is an operation as received; Data shares the packet's memory.
type Op struct {
	OpHead
	Data []byte
}

// Result is a result as received; Data shares the packet's memory.
type Result struct {
	ResultHead
	Data []byte
}

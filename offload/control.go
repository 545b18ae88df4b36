// SPDX-License-Identifier: Apache-2.0

package offload

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
)

// Control messages travel between hostd (client) and dpud (server) over one
// SOCK_SEQPACKET connection: the stand-in for the management path of the PCIe
// slot. Each packet is one JSON object, at most MaxControl bytes, with the
// file descriptors that the message names attached (SCM_RIGHTS). A request
// with ID n is answered by exactly one message of type "ok" or "error" with
// the same ID. Unknown fields are refused.
const MaxControl = 16384

// Control message types. The file descriptors in the order they are attached.
const (
	CtlHello          = "hello"           // host to DPU, first: Version, Features
	CtlSessionOpen    = "session_open"    // Session, Layout, Process; fds: session memory, one doorbell eventfd a shard
	CtlSessionClose   = "session_close"   // Session; Reason
	CtlChannelOpen    = "channel_open"    // Session, Channel; fds: interrupt eventfd
	CtlForkAdopt      = "fork_adopt"      // Session (the child's), Token (32 hex digits): its handles become the child's
	CtlForkDrop       = "fork_drop"       // Token: the child will not come
	CtlForkKeep       = "fork_keep"       // Token: the child lives, so the grant outlives its parent's session
	CtlSocketTransfer = "socket_transfer" // Session (receiver), Shard, and From and Handle, or Token: grant one socket; answered with Handle
	CtlPing           = "ping"
	CtlOK             = "ok"
	CtlError          = "error"
)

// Control is one message.
type Control struct {
	Type     string   `json:"type"`
	ID       uint64   `json:"id"`
	Version  uint32   `json:"version,omitempty"` // major<<16 | minor
	Features uint64   `json:"features,omitempty"`
	Shards   int      `json:"shards,omitempty"` // in the answer to hello
	Session  uint64   `json:"session,omitempty"`
	Layout   *Layout  `json:"layout,omitempty"`
	Process  *Process `json:"process,omitempty"`
	Channel  int      `json:"channel,omitempty"`
	Token    string   `json:"token,omitempty"`
	From     uint64   `json:"from,omitempty"`
	Shard    int      `json:"shard,omitempty"`
	Handle   uint32   `json:"handle,omitempty"`
	Reason   string   `json:"reason,omitempty"`
	Error    string   `json:"error,omitempty"`
}

// Process describes the owner of a session. All but Transparent is for logs
// and statistics only.
type Process struct {
	PID  int    `json:"pid"`
	Name string `json:"name"`
	// Transparent says that it may bind to addresses which are not the DPU's.
	// The DPU takes the agent's word, never the process's.
	Transparent bool `json:"transparent,omitempty"`
}

// ErrControl is wrapped by every error about a malformed control message.
var ErrControl = errors.New("malformed control message")

// EncodeControl returns the packet of m.
func EncodeControl(m *Control) ([]byte, error) {
	b, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode control message: %w", err)
	}
	if len(b) > MaxControl {
		return nil, fmt.Errorf("encode control message of %d bytes: %w", len(b), ErrControl)
	}
	return b, nil
}

// DecodeControl parses one packet. It refuses unknown fields, trailing bytes
// and packets over MaxControl.
func DecodeControl(b []byte) (*Control, error) {
	if len(b) > MaxControl {
		return nil, fmt.Errorf("%d bytes: %w", len(b), ErrControl)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	m := new(Control)
	if err := d.Decode(m); err != nil {
		return nil, fmt.Errorf("%w: %v", ErrControl, err)
	}
	if d.More() {
		return nil, fmt.Errorf("%w: trailing bytes", ErrControl)
	}
	if m.Type == "" {
		return nil, fmt.Errorf("%w: no type", ErrControl)
	}
	return m, nil
}

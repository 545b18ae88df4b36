// SPDX-License-Identifier: Apache-2.0

// Package wire is what both ends of the cluster's stream must agree on and the
// schema cannot say: how often they ping, how large a message may be, and that
// its numbers are those of package signing.
//
// It holds constants only.
package wire

import (
	"time"

	"pno/crypto/signing"
)

// Keepalive. A client may not ping more often than the worker permits, or it is
// told to go away; gRPC lets no client ping below 10 s. Stalls are found much
// earlier, by the operations themselves.
const (
	ClientPing    = 10 * time.Second
	ClientTimeout = 3 * time.Second
	PermittedPing = 5 * time.Second
	ServerPing    = 10 * time.Second
	ServerTimeout = 3 * time.Second
)

// Bounds of a stream.
const (
	MaxBatch    = 256
	MaxInflight = 1024
	// MaxMessage holds a full batch of the longest operations.
	MaxMessage = MaxBatch * (signing.MaxInput + 128)
	// Window and ConnWindow are the flow-control windows of a stream and of a
	// connection. They are fixed: gRPC would otherwise measure the path with a ping
	// for each message that comes alone, which the other side has to answer, and
	// that costs as much as the operation's own packets. A window holds what a
	// stream usually has open, and bounds what a peer can have us keep unread.
	Window     = 256 << 10
	ConnWindow = 1 << 20
	// MaxText bounds the reason in a result.
	MaxText = 200
)

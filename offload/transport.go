// SPDX-License-Identifier: Apache-2.0

package offload

import "errors"

// ErrBounds is returned for an access outside the host memory that a
// Transport was given.
var ErrBounds = errors.New("access outside the session memory")

// OpKind tells what a DMA operation does.
type OpKind uint8

const (
	DMARead  OpKind = iota // host memory to Buf
	DMAWrite               // Buf to host memory
)

// DMA is one operation between DPU memory (Buf) and host memory (Off). The
// caller owns it before Post and again once Done is true; Buf must not be
// touched in between.
type DMA struct {
	Kind OpKind
	Line bool // a control line: Off and len(Buf) multiples of 8, len(Buf) at most 64
	Off  uint64
	Buf  []byte
	Done bool
}

// Transport is how a DPU reaches the memory of one session: the only way (the
// DPU never dereferences host memory). One shard's goroutine owns one
// Transport; Post and Poll do not block.
//
// Ordering is PCIe's: writes become visible to the host in the order posted,
// and a read posted after a write observes host memory after that write is
// visible (a read does not pass a posted write). The sleep/wake protocol of
// docs/protocol.md rests on this. Operations marked Line are single-copy atomic
// per aligned 8-byte word.
type Transport interface {
	// Post starts operations. An out-of-range operation is refused with
	// ErrBounds and nothing is started. A zero-cost transport completes them
	// before it returns.
	Post(ops ...*DMA) error
	// Poll completes what is due (sets Done) and returns the time in
	// nanoseconds until the next completion, 0 if nothing is in flight.
	Poll() int64
	// Interrupt raises the interrupt of a channel. Failures are counted by the
	// transport; a channel never opened is ignored.
	Interrupt(channel int)
	// DoorbellFD becomes readable when the host rang this shard's doorbell;
	// DoorbellAck clears it. They are -1 and a no-op for a transport that
	// must be polled.
	DoorbellFD() int
	DoorbellAck()
	Close() error
}

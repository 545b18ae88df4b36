// SPDX-License-Identifier: Apache-2.0

// Package link is the seam between a shard and the wire. A Device is one
// network port; it has one or more Queues, and each Queue belongs to exactly
// one goroutine (the shard's loop), which is the only caller of its methods.
// Close of the Device may be called by anyone once the loops have stopped;
// Stats may be called by anyone at any time.
//
// Implementations: xsk (AF_XDP), afpacket, and the simulator's virtual wire.
// linktest holds the conformance suite that each of them passes.
package link

import "errors"

// ErrClosed is returned by Queue methods after the device went away.
var ErrClosed = errors.New("link closed")

// Device is a network port with hardware address and MTU.
type Device interface {
	Name() string
	MAC() [6]byte
	// MTU is the largest IP packet, without the Ethernet header.
	MTU() int
	// Queues returns the receive/transmit queues, fixed for the device's life.
	Queues() []Queue
	Stats() Stats
	// Close detaches from the wire and frees the frames' memory: no slice from
	// Recv or TxAlloc may be used afterwards. A second Close does nothing.
	Close() error
}

// Queue is one receive/transmit queue pair. Single owner, not safe for
// concurrent use, batched in both directions.
type Queue interface {
	// Recv fills frames with up to len(frames) received Ethernet frames and
	// returns their number; 0 when none is waiting. The slices point into
	// memory owned by the queue and stay valid until Release. An owner that
	// never releases stops receiving and loses packets, nothing worse.
	Recv(frames [][]byte) (int, error)
	// Release gives back every frame returned by Recv since the last Release.
	Release()

	// TxAlloc returns an empty transmit frame with room for MTU+14 bytes, or
	// nil when the queue is full (the caller keeps the packet and retries
	// after Flush). It is sent by TxCommit(n), which may be called once; a
	// TxAlloc with no TxCommit in between returns the same frame again.
	TxAlloc() []byte
	// TxCommit queues the first n bytes of the frame. A length no frame can
	// have drops it and counts it in TxDropped.
	TxCommit(n int)
	// Flush hands committed frames to the device with at most one system
	// call, and reclaims completed ones.
	Flush() error
	// TxPending tells whether committed frames still wait for the device, so
	// that the owner must call Flush again before it sleeps.
	TxPending() bool

	// FD becomes readable (poll/epoll, level-triggered) when Recv would
	// return frames. The queue keeps ownership.
	FD() int
}

// Stats are counters of the whole device, in packets and bytes since Open.
type Stats struct {
	RxPackets, RxBytes uint64
	TxPackets, TxBytes uint64
	RxDropped          uint64 // lost before Recv: ring full, no buffers, malformed
	TxDropped          uint64
	Kicks              uint64 // system calls that told the device about frames
}

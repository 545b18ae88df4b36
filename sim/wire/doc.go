// SPDX-License-Identifier: Apache-2.0

// Package wire is a network cable inside one process: two link.Devices, each
// with one or more queues, and between them a wire that can lose, delay,
// reorder, duplicate and slow down frames, each direction by its own rules.
//
// Frames are never copied: TxAlloc hands out a frame of the sending queue's
// own pool, the receiver sees the very same memory, and its Release returns
// it. A sender therefore runs out of frames when the receiver is behind, and
// TxAlloc answers nil (push-back) unless Config.DropTail is set. Nothing is
// allocated and no goroutine runs for a frame.
//
// Who calls: each Queue belongs to one goroutine, as package link demands.
// This implementation is laxer in one point, which sim/edge relies on: the
// receive half of a queue (Recv, Release, FD) and its transmit half (TxAlloc,
// TxCommit, Flush, TxPending) may belong to two different goroutines.
//
// What happens to the n-th frame of a queue is decided by Config.Seed alone,
// so a run with the same seed and the same frames meets the same faults. The
// moments are real time and vary as scheduling does.
package wire

// SPDX-License-Identifier: Apache-2.0

// Package xsk drives a network interface through AF_XDP sockets: frames move
// between the wire and this process without the kernel's network stack.
//
// A Device attaches one XDP program to an interface and owns one socket per
// receive queue. Each Queue has a UMEM (the frames' memory), and the four rings
// that pass frame addresses to and from the kernel, to itself: queues share
// nothing, and each belongs to the one goroutine that polls it. Open must run
// on a thread inside the interface's network namespace; afterwards the
// namespace of the caller does not matter. Stats, Info and Close may be called
// from any goroutine, Close only after the queues' owners have stopped.
//
// Files: ring.go is the shared-index protocol, umem.go knows which side owns
// each frame, socket.go speaks to the kernel, program.go steers packets into
// the sockets, queue.go and device.go implement package link.
//
// Things that the kernel leaves to the user:
//
//   - Checksums. XDP runs before the kernel would finish a checksum left to
//     "hardware", so a veth peer must have transmit checksum offload off
//     (ethtool -K PEER tx off). Real interfaces deliver finished checksums.
//   - Merged frames. Receive offloads that merge segments (LRO, hardware GRO)
//     exceed a frame and are dropped by the kernel; drivers turn LRO off, or
//     refuse the program, while it is on.
//   - Frames longer than a frame's room are dropped and counted by the kernel:
//     FrameSize less 256 bytes of headroom. Multi-buffer frames are not used.
//   - VLAN-tagged and other non-IP frames do not reach the queues; PassOther
//     gives them to the kernel.
package xsk

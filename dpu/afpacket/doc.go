// SPDX-License-Identifier: Apache-2.0

// Package afpacket drives a network interface through AF_PACKET sockets with
// memory-mapped rings: the fallback for interfaces and kernels on which AF_XDP
// does not work. It costs one more copy a received frame.
//
// The rings are TPACKET_V2's, one slot a frame. TPACKET_V3 packs frames into
// blocks and tells the reader when a block is full or its timeout, of at least
// a millisecond, has passed: a single frame on an idle veth (amd64, Linux 6.18)
// woke its reader after 5 µs with V2 and after 0.9 ms with V3, longer than the
// round trips that are served here.
//
// A Device owns one socket per receive queue, joined in a fanout group that
// keeps the interface's own distribution: Queues()[i] gets what arrives on
// receive queue i. Each Queue belongs to the one goroutine that polls it; they
// share nothing. Open must run on a thread inside the interface's network
// namespace. Stats and Close may be called from any goroutine, Close only
// after the queues' owners have stopped.
//
// The kernel still sees every frame: the interface must have no IP address, or
// the kernel would answer for connections that it does not know.
//
// A sender on the same machine may leave checksums unfinished; Recv finishes
// those of TCP and UDP. Segments that the kernel merged would not fit a
// frame, so Open turns merging (GRO, LRO) off, and Close turns it on again.
// Frames longer than the MTU, which a veth peer with segmentation offload
// makes, and VLAN-tagged frames are dropped and counted.
package afpacket

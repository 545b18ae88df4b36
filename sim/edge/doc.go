// SPDX-License-Identifier: Apache-2.0

// Package edge is the far end of the virtual wire: a host with a network stack
// of its own (gVisor) that carries TCP between this machine's loopback and the
// addresses behind the DPU, in both directions, so that curl, a browser or wrk
// can talk to an offloaded server, and an offloaded program to a loopback
// service, with no privilege.
//
// Connections are carried, not just their bytes: a half-close crosses as a
// half-close, a reset as a reset, a refused connection as a refused one, and a
// full buffer on one side stops the sender on the other. What does not cross
// is the client's address: behind the DPU every connection comes from the
// edge's.
//
// Who calls: Start and Close may be called by any goroutine. One goroutine
// owns the receive half of the wire's queue; the transmit half is guarded by
// port.mu, since any of gVisor's goroutines may send. Two goroutines carry one
// connection; they hold a buffer only while they move bytes.
package edge

// SPDX-License-Identifier: Apache-2.0

// Package shim offloads the TCP sockets of a Go program to a DPU. It is to Go
// what libpno.so, whose sources are in src/, is to programs that call libc: the
// Go runtime makes its system calls itself, so that nothing can be preloaded
// into it.
//
//	ln, err := shim.Listen("tcp", ":8080")
//	err = http.Serve(ln, handler)
//
//	client := http.Client{Transport: &http.Transport{DialContext: new(shim.Dialer).DialContext}}
//
// The process attaches to hostd (PNO_HOSTD names its socket) at its first
// socket, and policy decides about each, as for any other program. What is left
// to the kernel comes from package net, and is counted with its reason where
// `offloadctl stats` shows it.
//
// A process has one session with hostd. A program that uses this package must
// not have libpno.so offload sockets of C code in the same process.
//
// # Who owns what
//
// A session is one attachment: the shared memory, and one channel with a lane
// (queue pair) a shard. A lane's two halves have a lock each, and no lock is
// shared by lanes. Any goroutine that finds nothing to read looks into its own
// lane; otherwise the session's one poller goroutine does, which sleeps in the
// runtime's network poller on the channel's interrupt. Nothing else runs for a
// connection: a Read that waits is a goroutine parked on its connection.
//
// Locks are taken in this order: a lane's rx, a listener's or a connection's,
// a lane's tx.
//
// The DPU is not trusted: whatever comes from it is copied once and checked,
// and a record that cannot be true ends the session, as the loss of the DPU
// does. Connections are then reset; listeners come back with the next session.
package shim

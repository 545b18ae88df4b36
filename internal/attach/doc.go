// SPDX-License-Identifier: Apache-2.0

// Package attach is the Go side of shim/attach.h: the messages between a
// process's shim and hostd, one per SOCK_SEQPACKET packet. The C header is the
// source; a test compiles it and compares every size, offset and constant.
//
// A message from the other side is untrusted. Decode checks magic, version,
// type, size and every reserved or bounded field once, and returns a copy.
//
// Nothing here holds state; a Conn belongs to the goroutine that reads it, and
// its Send may be called by one goroutine at a time.
package attach

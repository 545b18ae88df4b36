// SPDX-License-Identifier: Apache-2.0

// Package offload is the contract between the two sides of a pno channel: the
// layout of the session memory, the records that the rings carry, the version
// and feature handshake, the control messages between hostd and dpud, and the
// Transport seam through which a DPU reaches host memory.
//
// It knows neither gVisor nor the shim, and imports only the standard library.
// The Go definitions are the single source: genabi writes shim/abi.h from
// them, and a test fails when the two differ.
//
// Who owns what: each 64-byte control line in the session memory has exactly
// one writer (HostLine the host, DevLine the DPU); each ring has one producer
// and one consumer. Nothing here takes a lock; a HostRing or DevRing value
// belongs to one goroutine at a time.
package offload

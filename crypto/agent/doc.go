// SPDX-License-Identifier: Apache-2.0

// Package agent is the key agent of a proxy host: it takes private-key
// operations from the OpenSSL provider on a Unix socket (protocol.h) and has
// them done by the cluster. The provider lives in processes that fork and know
// nothing but this socket; credentials, balancing, retries and fallback are
// here. It runs inside hostd, or as `cryptod agent`.
//
// An Agent owns its socket, the connections on it and one goroutine each to
// read and to write, and a bounded set of goroutines that wait for operations.
// Serve returns after all have ended. The other functions keep no state; any
// goroutine may call them.
package agent

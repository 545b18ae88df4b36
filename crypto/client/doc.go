// SPDX-License-Identifier: Apache-2.0

// Package client uses private keys that are elsewhere: in a cluster of workers,
// in a second one, and last in sealed copies on this machine, in the order that
// the policy says. To Go programs a key is a crypto.Signer.
//
// An operation goes to the less busy of two workers taken at random. When the
// answer is late, it is asked of one more worker; when a worker breaks, refuses
// for a reason of its own or signs wrongly, of another. A signature has no side
// effect, so that is safe; it is bounded by the operation's deadline, by a
// budget of repetitions, and by a circuit breaker a worker.
//
// A Cluster owns, for each worker, a connection with some streams and three
// goroutines a stream, and one goroutine that follows the list of addresses.
// Close ends them. Of those goroutines an operation at low load meets only the one
// that receives: its caller writes it to the stream (link.go), and nobody sets a
// timer for it alone (alarm.go). All methods may be called by any goroutine.
package client

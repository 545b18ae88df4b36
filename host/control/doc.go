// SPDX-License-Identifier: Apache-2.0

// Package control is hostd's end of the management link to dpud: one
// SOCK_SEQPACKET connection that carries offload.Control messages. The client
// dials, says hello, matches answers to requests by id, pings, and after a loss
// dials again with growing pauses until its context ends.
//
// One goroutine (Run) dials and reads. Do may be called by any goroutine; mu
// guards the link and the table of waiting requests, wmu the writing. The Up,
// Down and Closed callbacks are called by Run's goroutine, never two at once, and Up
// before any Do of that link can succeed.
package control

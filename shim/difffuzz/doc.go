// SPDX-License-Identifier: Apache-2.0

// Package difffuzz compares the shim with the kernel by random programs of
// socket calls: whatever the kernel answers, the shim has to answer.
//
// A [Program] is a list of calls on numbered slots, drawn from a seed
// (generate.go). A model of the sockets (model.go) keeps it legal, which means
// that its results can be foretold up to what the kernel decides, and that no
// call blocks for ever; and it says after each call what has to arrive
// somewhere else before the next one, so that no result depends on time. The
// player (player/, C) makes the calls and writes a transcript, once with the
// kernel's sockets in a network of its own and once under pno sim. Transcripts
// must be equal.
//
// A program whose transcripts differ is played again, so that a loaded machine
// is not taken for a bug, and is then made smaller call by call (minimise.go).
// Programs that once differed are in testdata/ and are played by every run.
//
//	go test ./shim/difffuzz -fuzz-for 1h -fuzz-seed 7
package difffuzz

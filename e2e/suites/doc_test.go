// SPDX-License-Identifier: Apache-2.0

// Package suites runs other people's test suites, as Debian ships them in its
// packages and in their sources, on kernel sockets and under the shim, and
// compares case by case.
//
// A module of a suite runs twice, each time in a network namespace of its own
// that has nothing but a loopback: natively, and as the program of
// `pno sim --offload-loopback`. Its score is how many of the cases that pass
// natively pass offloaded as well. A module counts only if the simulation's
// statistics show that it had sockets on the DPU.
//
// TestQuick is part of `make test`: a part of the suites, where every difference
// that is not in the list of known ones (known_test.go) is a failure. TestAll,
// by `make suites`, runs everything and writes docs/suites.md.
package suites

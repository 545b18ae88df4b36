// SPDX-License-Identifier: Apache-2.0

// Package server is a worker of the crypto cluster: it takes operations from
// the streams of pno.crypto.v1, checks each against the key, the access rules
// and the rate limits, has engines compute them, verifies, answers and records.
//
// A Server owns its engines, the keys loaded in them, and three goroutines a
// stream: one reads, checks and submits, and writes what was answered meanwhile;
// one writes, in batches, the results that come later; the handler ends the
// stream when the client's right to it ends. Completions come on the engines'
// goroutines, but the reader itself computes what comes alone, if the engine is
// idle: at low load an operation passes through one goroutine. A stream's reader
// stops reading while its limit of open operations is reached, and an operation
// is refused at once when every engine's queue is full, so memory is bounded
// whatever clients do.
//
// SetRules, LoadKeys and Drain may be called by any goroutine.
package server

// SPDX-License-Identifier: Apache-2.0

// Package server is a worker of the crypto cluster: it takes operations from
// the streams of pno.crypto.v1, checks each against the key, the access rules
// and the rate limits, has engines compute them, verifies, answers and records.
//
// A Server owns its engines, the keys loaded in them, and three goroutines a
// stream: one reads, checks and submits; one writes results, in batches; the
// handler ends the stream when the client's right to it ends. Completions come
// on the engines' goroutines. A stream's reader stops reading while its limit
// of open operations is reached, and an operation is refused at once when
// every engine's queue is full, so memory is bounded whatever clients do.
//
// SetRules, LoadKeys and Drain may be called by any goroutine.
package server

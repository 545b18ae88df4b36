// SPDX-License-Identifier: Apache-2.0

// Package signing says what may be asked of a private key, in the one form that
// every part of the cluster passes on: a key by the hash of its public half, a
// TLS signature scheme, and an input of exactly the right length. There is no
// form for raw RSA.
//
// A Request is what travels; Prepare checks it against a key and turns it into
// the Task that an engine computes. Both are plain values and belong to whoever
// holds them. Functions here keep no state: any goroutine may call them.
package signing

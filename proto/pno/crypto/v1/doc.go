// SPDX-License-Identifier: Apache-2.0

// Package cryptov1 is what proxies and the workers of the crypto cluster say to
// each other: one bidirectional stream of private-key operations.
//
// Everything but this file is generated from the .proto file (make gen). A
// message belongs to whoever holds it; a client may be used by any goroutine.
package cryptov1

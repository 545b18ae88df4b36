// SPDX-License-Identifier: Apache-2.0

// Package keystore keeps private keys encrypted at rest: a directory with one
// file a key, in which the key is sealed with a key of its own (AES-256-GCM),
// and that one by a key-encryption key that is kept elsewhere: in a file, in a
// credential of the service manager, in the environment, or in a PKCS #11 token.
// What the file says about the key is authenticated with it.
//
// A Store has no state but its directory and its KEK; any goroutine, and any
// process, may use it. Files are replaced whole. A Secret belongs to its
// opener, who closes it.
package keystore

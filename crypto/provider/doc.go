// SPDX-License-Identifier: Apache-2.0

// Package provider holds the tests of the OpenSSL provider pno.so, whose C
// sources are in src/: theory of operation in src/provider.c. It has no Go code
// of its own.
//
// The tests build the provider, run a key agent with faults to order inside the
// test process, and let stock programs (openssl, curl) use keys that only this
// agent has.
package provider

// SPDX-License-Identifier: Apache-2.0

// Package libcrypto is the engine of OpenSSL 3: the fastest software for RSA,
// and by the name of a provider the way to a card (Intel's qatprovider). It
// needs cgo and Linux; elsewhere New says so.
//
// Of a key that it has loaded nothing is in ordinary memory (locked.c), and when
// the key is closed nothing is left.
//
// The engine owns its workers, and per worker the memory that a batch travels
// in and the contexts of each key; one call into C does a batch. Any goroutine
// may call its methods; see package engine for who owns what.
package libcrypto

// Bounds of Config.Heap.
const (
	MinHeap = 1 << 20
	MaxHeap = 128 << 20 // the arena ends with about as many keys
)

// Config sizes the engine; zero values mean one worker a processor and 1024
// operations.
type Config struct {
	Threads int
	Queue   int
	// Provider is loaded beside the default one; PropQuery, as
	// "?provider=qatprovider", makes it the preferred one.
	Provider  string
	PropQuery string
	// Heap is the locked memory for the numbers of keys, a power of two of bytes,
	// of which an RSA-2048 key takes about 900. The first engine makes it, for the
	// whole process; one that asks for more later fails. 0: up to 32 MiB, but half
	// of what the process may lock. Load refuses keys beyond seven eighths of it,
	// which leaves operations the rest.
	Heap int
}

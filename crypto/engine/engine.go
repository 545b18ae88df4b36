// SPDX-License-Identifier: Apache-2.0

// Package engine is the seam between what a worker is asked for and what
// computes it: software, a library, a card, or another cluster.
//
// Operations go in as batches and come out as batches, asynchronously. Submit
// hands over an operation: until the sink has it back, it belongs to the
// engine. The sink is called on goroutines of the engine, several at once; the
// slice that it gets is valid during the call, the operations are the
// receiver's. What the sink has is not held any more: there is room for as many
// new ones, which the sink may submit. A sink must not block, and must not call
// Close. An engine that is Here also computes on the goroutine of who submits,
// which saves the way through another one; the sink is called there, too.
//
// A key belongs to the engine that loaded it. Its holder closes it once, when
// no operation that names it is out: the sink is early enough, and it must be
// before the engine's Close returns.
package engine

import (
	"crypto"
	"errors"
	"time"

	"pno/crypto/signing"
)

// Info describes an engine: what it tells the scheduler and the operator.
type Info struct {
	Kind      string   // go, libcrypto, remote, simcard
	Detail    string   // what exactly
	Capacity  int      // operations it holds at once
	Window    int      // operations that keep it busy: more only wait, in no fair order; 0: Capacity
	Batch     int      // operations it likes to get together
	Simulated bool     // models hardware that is not there
	Verifies  bool     // checks RSA signatures before it lets them out
	Features  []string // of the processor, that its code for signatures looks at and finds
}

// Material is a private key to load. The engine keeps a form of its own, and no
// reference to PKCS8 after Load has returned.
type Material struct {
	ID     signing.KeyID
	Public crypto.PublicKey
	PKCS8  []byte // nil for engines that reach the key elsewhere
}

// Key is a loaded key.
type Key interface {
	// Close wipes it.
	Close()
}

// ErrUnsupported is wrapped by Load for a type of key that the engine does not
// compute with, and by New on machines that do not have the engine.
var ErrUnsupported = errors.New("not supported by this engine")

// Op is one operation. The submitter fills in the first part.
type Op struct {
	Key      Key
	Task     signing.Task
	Deadline time.Time // zero: none; passed: not computed
	Next     bool      // another engine will be asked if this one cannot: what is away is not waited for
	Owner    any       // the submitter's

	Out     []byte
	Err     error     // an *signing.Error, or nil
	Started time.Time // of the computation; zero if there was none
	Exec    time.Duration
}

// Sink takes operations back.
type Sink func(done []*Op)

// Engine computes.
type Engine interface {
	Info() Info
	// Load makes a key usable. It may take long.
	Load(m Material) (Key, error)
	// Submit takes as many of the operations, from the first on, as there is
	// room for, and says how many. It never blocks.
	Submit(ops []*Op) int
	// Close waits for the operations that are out, and ends the goroutines.
	// Nothing is submitted after it.
	Close() error
}

// Here is an engine that can compute on the goroutine of who submits.
type Here interface {
	// SubmitHere computes an operation and gives it to the sink before it returns.
	// False means that the engine has not taken it, for it has other work: Submit is
	// for that.
	SubmitHere(op *Op) bool
}

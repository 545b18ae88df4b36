// SPDX-License-Identifier: Apache-2.0

//go:build !cgo || !linux

package libcrypto

import (
	"fmt"

	"pno/crypto/engine"
)

// Available tells whether New can succeed in this build.
const Available = false

// Unlocked has nothing to tell: there are no keys here.
func Unlocked() error { return nil }

// Heap is nothing.
func Heap() (used, size int) { return 0, 0 }

// New fails: this program was built without cgo.
func New(Config, engine.Sink) (engine.Engine, error) {
	return nil, fmt.Errorf("start libcrypto engine: built without cgo; use the go engine, or build with CGO_ENABLED=1 and libssl-dev: %w", engine.ErrUnsupported)
}

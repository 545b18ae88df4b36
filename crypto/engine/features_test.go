// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"slices"
	"testing"

	"pno/internal/cpufeat"
)

// What an engine names is told where the processor has it, and nothing else is.
func TestFeatures(t *testing.T) {
	has := cpufeat.Detect().Names
	if got := Features(append([]string{"no-such-feature"}, has...)...); !slices.Equal(got, has) {
		t.Errorf("got %q, want %q", got, has)
	}
	if got := Features("no-such-feature"); len(got) != 0 {
		t.Errorf("got %q of nothing", got)
	}
}

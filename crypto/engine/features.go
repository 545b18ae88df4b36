// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"slices"

	"pno/internal/cpufeat"
)

// Features are those of the named processor features that this machine has, for
// Info: an engine names the ones that its code for signatures looks at.
func Features(names ...string) []string {
	cpu := cpufeat.Detect()
	return slices.DeleteFunc(names, func(name string) bool { return !cpu.Has(name) })
}

// SPDX-License-Identifier: Apache-2.0

// Package terminal makes text of others safe to show. Its function may be called
// from any goroutine.
package terminal

import (
	"strconv"
	"strings"
)

// Printable replaces what a terminal would obey, or cannot show, in text that
// another process chose: a name must not move the cursor.
func Printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !strconv.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"os"
	"runtime/debug"
)

// CalmGC trades memory for time: the collector waits until the heap has grown
// by so many per cent, unless GOGC says otherwise.
func CalmGC(percent int) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(percent)
	}
}

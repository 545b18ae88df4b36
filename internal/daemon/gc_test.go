// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"runtime/debug"
	"testing"
)

func TestCalmGCLeavesTheLastWordToGOGC(t *testing.T) {
	before := debug.SetGCPercent(100)
	defer debug.SetGCPercent(before)
	for _, c := range []struct {
		env  string
		want int
	}{{"", 300}, {"50", 100}} {
		t.Setenv("GOGC", c.env)
		debug.SetGCPercent(100)
		CalmGC(300)
		if got := debug.SetGCPercent(100); got != c.want {
			t.Errorf("with GOGC=%q the collector runs at %d %%, want %d", c.env, got, c.want)
		}
	}
}

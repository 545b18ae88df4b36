// SPDX-License-Identifier: Apache-2.0

package server

import (
	"fmt"
	"testing"
	"time"
)

// A client has its burst and then its rate, another has its own, and those at
// rest are forgotten.
func TestLookupRate(t *testing.T) {
	l, now := lookups{due: map[string]time.Time{}}, time.Now()
	taken := func(client string) (n int) {
		for l.take(client, now) {
			n++
		}
		return n
	}
	if n := taken("a"); n != lookupBurst {
		t.Errorf("%d at once, want %d", n, lookupBurst)
	}
	now = now.Add(time.Second)
	if n := taken("a"); n != lookupRate {
		t.Errorf("%d a second later, want %d", n, lookupRate)
	}
	if n := taken("b"); n != lookupBurst {
		t.Errorf("%d by another client, want %d", n, lookupBurst)
	}
	for i := range 2 * lookupClients {
		now = now.Add(time.Second)
		l.take(fmt.Sprint(i), now)
	}
	if len(l.due) > lookupClients {
		t.Errorf("%d clients remembered", len(l.due))
	}
}

// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"
)

// A flood has the first lines and sums, whose number is right; a quiet interval
// begins it anew; what is left is told in the end.
func TestRefusals(t *testing.T) {
	var said bytes.Buffer
	r := &refusals{log: slog.New(slog.NewTextHandler(&said, nil)), every: time.Hour} // next is called here
	lines := func() (single, sums int) {
		defer said.Reset()
		return strings.Count(said.String(), "refused a connection"), strings.Count(said.String(), "refused more connections")
	}
	flood := func(n int) {
		for range n {
			r.tell("key agent refused a connection", "uid", 7)
		}
	}
	check := func(what string, single, sums int) {
		t.Helper()
		if a, b := lines(); a != single || b != sums {
			t.Errorf("%s: %d lines and %d sums, want %d and %d", what, a, b, single, sums)
		}
	}
	flood(1000)
	check("flood", refusalsFirst, 0)
	r.next()
	if want := "times=984"; !strings.Contains(said.String(), want) {
		t.Errorf("no %s in %s", want, said.String())
	}
	check("after an interval", 0, 1)
	flood(5)
	check("it goes on", 0, 0)
	r.next()
	check("after two", 0, 1)
	r.next()
	check("quiet", 0, 0)
	flood(3)
	check("again", 3, 0)
	r.next()
	flood(refusalsFirst + 4)
	lines()
	r.end()
	check("in the end", 0, 1)
	r.next() // its timer may have fired already
	check("after the end", 0, 0)
}

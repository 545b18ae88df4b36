// SPDX-License-Identifier: Apache-2.0

package shard

import (
	"strings"
	"testing"
)

// batch is a frame for each letter; the same letter is the same connection.
func batch(flows string) (frames [][]byte) {
	for i, c := range flows {
		f := make([]byte, 60+i)
		f[5] = byte(i) // what is not its name may differ
		f[37] = byte(c)
		frames = append(frames, f)
	}
	return frames
}

func TestBatchIsSplitBetweenConnections(t *testing.T) {
	for _, c := range []struct {
		flows string
		at    int
	}{
		{"", 0},
		{"a", 1},
		{"ab", 1},
		{"aa", 2},
		{"abcdefgh", 8 - headStart},
		{"aaaaaaab", 7},
		{"aaabbbbbbbb", 11},
		{"abcdeffffghij", 13 - headStart + 2},
		{strings.Repeat("a", 64), 64},
		{strings.Repeat("ab", 32), 64 - headStart},
	} {
		if at := split(batch(c.flows)); at != c.at {
			t.Errorf("%q is split at %d, want %d", c.flows, at, c.at)
		}
	}
	if at := split([][]byte{make([]byte, 14), make([]byte, 14)}); at != 1 {
		t.Errorf("two frames without addresses are split at %d", at)
	}
}

// SPDX-License-Identifier: Apache-2.0

package shard

import "testing"

// say plays a host that says size bytes each step nanoseconds, n times, and
// then either sleeps or says nothing more. It returns when the shard sends, and
// how many bytes.
func say(g *gatherer, size uint64, step int64, n int, asleep bool) (sent int64, bytes uint64) {
	now, heard := int64(1_000_000), g.heard
	for range n {
		now += step
		heard += size
		if !g.waits(now, heard, true) {
			return now - 1_000_000, heard
		}
	}
	if asleep {
		if g.waits(now+500, heard, false) {
			return -1, heard
		}
		return now + 500 - 1_000_000, heard
	}
	for g.waits(now, heard, true) {
		now += 500
	}
	return now - 1_000_000, heard
}

func TestAnswersAreGathered(t *testing.T) {
	for _, tc := range []struct {
		name   string
		size   uint64
		step   int64
		n      int
		asleep bool
		sent   int64
		bytes  uint64
	}{
		{"one, then asleep", 256, 1_000, 1, true, 1_500, 256},
		{"eight, then asleep", 256, 1_000, 8, true, 8_500, 8 * 256},
		{"eight, then busy with something else", 256, 1_000, 8, false, 8_000 + gatherPause, 8 * 256},
		{"one, then busy with something else", 256, 1_000, 1, false, 1_000 + gatherPause, 256},
		{"without an end", 16, 1_000, 1000, true, 1_000 + gatherMost, (1 + gatherMost/1000) * 16},
		{"long ones", 8 << 10, 1_000, 1000, true, 4_000, gatherBytes},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g := new(gatherer)
			sent, bytes := say(g, tc.size, tc.step, tc.n, tc.asleep)
			if sent != tc.sent || bytes != tc.bytes {
				t.Errorf("sent after %d ns at %d bytes, want %d and %d", sent, bytes, tc.sent, tc.bytes)
			}
			if !g.quiet(g.heard) {
				t.Error("something still waits")
			}
		})
	}
}

func TestNothingSaidNothingWaits(t *testing.T) {
	g := new(gatherer)
	if !g.quiet(0) {
		t.Error("something waits though no host has spoken")
	}
	if g.quiet(1) {
		t.Error("what a host said goes unnoticed")
	}
}

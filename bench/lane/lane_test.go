// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"slices"
	"testing"
	"time"

	"pno/dpu/shard"
)

func TestRun(t *testing.T) {
	cores, err := shard.Cores()
	if err != nil {
		t.Fatal(err)
	}
	for shards := 1; shards <= 2; shards++ {
		r, err := Run(t.Context(), Load{Shards: shards, Conns: 16, Cores: slices.Repeat(cores, shards)[:shards]}, 300*time.Millisecond)
		if err != nil {
			t.Fatalf("%d shards: %v", shards, err)
		}
		t.Logf("%d shards: %d requests, %.2f µs of the DPU's CPU and %.4f allocations each; locks %+v", shards, r.Requests,
			float64(r.CPU)/1e3/float64(r.Requests), float64(r.Allocs)/float64(r.Requests), r.Locks)
		// From the wire through the stack to the rings and back, a request
		// allocates nothing, and neither does a turn, which serves as many as
		// there are connections. What runs by the clock does, now and then.
		// (Under the race detector pools forget some of what they are given.)
		if most := 200 + uint64(500*r.Elapsed.Seconds()) + r.Requests/50; !raceEnabled && r.Allocs > most {
			t.Errorf("%d shards: %d allocations for %d requests", shards, r.Allocs, r.Requests)
		}
		if r.Least == 0 || r.CPU <= 0 || r.Requests < uint64(shards)*r.Least {
			t.Errorf("%d shards: %+v", shards, r)
		}
	}
}

// What a connection may allocate. Most of it is gVisor's endpoint; it was 71
// times and 6450 bytes when this was written, and hardly varies.
const (
	maxObjects = 75
	maxBytes   = 6900
)

func TestShortConnections(t *testing.T) {
	r, err := Run(t.Context(), Load{Shards: 1, Conns: 16, Short: true}, 300*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	n := float64(r.Requests)
	objects, bytes := float64(r.Allocs)/n, float64(r.Bytes)/n
	t.Logf("%d connections, %.2f µs of the DPU's CPU, %.1f allocations of %.0f bytes in all each", r.Requests,
		float64(r.CPU)/1e3/n, objects, bytes)
	if r.Least == 0 || r.CPU <= 0 {
		t.Errorf("%+v", r)
	}
	if !raceEnabled && (objects > maxObjects || bytes > maxBytes) {
		t.Errorf("%.1f allocations of %.0f bytes in all, want at most %d of %d", objects, bytes, maxObjects, maxBytes)
	}
}

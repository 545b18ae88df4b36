// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"testing"
	"time"
)

func TestRun(t *testing.T) {
	for shards := 1; shards <= 2; shards++ {
		r, err := Run(t.Context(), shards, 16, 300*time.Millisecond)
		if err != nil {
			t.Fatalf("%d shards: %v", shards, err)
		}
		t.Logf("%d shards: %d requests, %.2f µs of the DPU's CPU each; locks %+v", shards, r.Requests,
			float64(r.CPU)/1e3/float64(r.Requests), r.Locks)
		if r.Least == 0 || r.CPU <= 0 || r.Requests < uint64(shards)*r.Least {
			t.Errorf("%d shards: %+v", shards, r)
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"testing"
	"time"
)

// BenchmarkLane is what a request costs a shard of the DPU; profile it with
// -cpuprofile. The lane's own share is in (*lane).run.
func BenchmarkLane(b *testing.B) {
	for b.Loop() {
		r, err := Run(b.Context(), 1, 64, 500*time.Millisecond)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(r.CPU)/float64(r.Requests), "dpu-ns/request")
	}
}

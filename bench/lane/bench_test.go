// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"fmt"
	"testing"
	"time"
)

// BenchmarkLane is what a request costs a shard of the DPU; profile it with
// -cpuprofile. The lane's own share is in (*lane).run.
func BenchmarkLane(b *testing.B) {
	for _, load := range []Load{{Shards: 1, Conns: 64}, {Shards: 1, Conns: 64, Short: true}} {
		b.Run(fmt.Sprintf("short=%v", load.Short), func(b *testing.B) {
			for b.Loop() {
				r, err := Run(b.Context(), load, 2*time.Second)
				if err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(r.CPU)/float64(r.Requests), "dpu-ns/request")
				b.ReportMetric(float64(r.Allocs)/float64(r.Requests), "allocs/request")
			}
		})
	}
}

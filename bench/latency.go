// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
)

// Latency is how long clients wait, by load.
type Latency struct {
	Benchmark string         `json:"benchmark"`
	Size      int            `json:"size"`
	Conns     int            `json:"conns"`
	Points    []LatencyPoint `json:"points"`
	Machine   Machine        `json:"machine"`
}

// LatencyPoint is one offered rate.
type LatencyPoint struct {
	Rate     int     `json:"rate_offered"`
	Kernel   Run     `json:"kernel"`
	Offload  Run     `json:"offload"`
	Ratio    float64 `json:"ratio"`        // of host CPU, kernel ÷ offload
	AddedP50 float64 `json:"added_p50_us"` // offload − kernel
	AddedP99 float64 `json:"added_p99_us"`
}

// loads are the offered rates, in parts of the lower maximum.
var loads = []float64{0.1, 0.25, 0.5, 0.75, 0.9}

// MeasureLatency offers an nginx worker a ladder of rates. With a single
// connection the maximum itself is what counts: the next request waits for the
// answer, so the ladder has only that point.
func MeasureLatency(ctx context.Context, o Options, w Web) (*Latency, error) {
	if w.Close {
		return nil, errors.New("latency is measured on connections that last")
	}
	sc := nginxScenario(w, "latency")
	c := sc.Comparison
	l := &Latency{Benchmark: "latency", Size: w.Size, Conns: w.Conns, Machine: machine()}
	err := c.on(ctx, o, sc, func(subjects []*subject) error {
		if err := c.chooseRate(ctx, o, subjects); err != nil {
			return err
		}
		ladder := []int{0}
		if w.Conns > 1 {
			ladder = nil
			for _, part := range loads {
				ladder = append(ladder, max(1, int(part*min(c.MaxKernel, c.MaxOffload))))
			}
		}
		for _, rate := range ladder {
			c.Kernel, c.Offload = Run{}, Run{}
			if err := pairs(ctx, o, subjects, rate, w.Size); err != nil {
				return fmt.Errorf("at %d requests a second: %w", rate, err)
			}
			p := LatencyPoint{Rate: rate, Kernel: c.Kernel, Offload: c.Offload,
				AddedP50: c.Offload.P50 - c.Kernel.P50, AddedP99: c.Offload.P99 - c.Kernel.P99}
			if c.Offload.HostCPU > 0 {
				p.Ratio = c.Kernel.HostCPU / c.Offload.HostCPU
			}
			l.Points = append(l.Points, p)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return l, nil
}

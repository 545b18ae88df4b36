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
	Ratio     float64        `json:"ratio"` // of the highest rate
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

// leastLoad is where the ladder begins on a machine that can do more.
const leastLoad = 20_000

// ladder is the rates to offer, up to most, the lower maximum.
func ladder(most int) []int {
	const steps = 5
	least := leastLoad
	if most <= least {
		least = most / steps
	}
	rates := make([]int, steps)
	for i := range rates {
		rates[i] = max(1, least+(most-least)*i/(steps-1))
	}
	return rates
}

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
		rates := []int{0}
		if w.Conns > 1 {
			rates = ladder(int(min(c.MaxKernel, c.MaxOffload)))
		}
		for _, rate := range rates {
			c.Kernel, c.Offload = Run{}, Run{}
			if err := pairs(ctx, o, subjects, rate, w.Size); err != nil {
				return fmt.Errorf("at %d requests a second: %w", rate, err)
			}
			p := LatencyPoint{Rate: rate, Kernel: c.Kernel, Offload: c.Offload,
				AddedP50: c.Offload.P50 - c.Kernel.P50, AddedP99: c.Offload.P99 - c.Kernel.P99}
			if c.Offload.HostCPU > 0 {
				p.Ratio = c.Kernel.HostCPU / c.Offload.HostCPU
			}
			l.Points, l.Ratio = append(l.Points, p), p.Ratio
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return l, nil
}

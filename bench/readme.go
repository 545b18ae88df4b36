// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Between these lines of a README stand the figures.
const (
	readmeFrom = "<!-- make bench writes from here -->\n"
	readmeTo   = "<!-- to here -->\n"
)

// InReadme returns the text of a README with the report's figures in their place.
func (r *Report) InReadme(text string) (string, error) {
	before, rest, from := strings.Cut(text, readmeFrom)
	_, after, to := strings.Cut(rest, readmeTo)
	if !from || !to {
		return "", errors.New("the README has no place for figures: two lines, " + readmeFrom + "and " + readmeTo)
	}
	return before + readmeFrom + r.summary() + readmeTo + after, nil
}

// summary is what a README shows of the report.
func (r *Report) summary() string {
	var b strings.Builder
	m := r.Machine
	fmt.Fprintf(&b, "%s, pno %s: %s, %d cores, Linux %s; medians of %d pairs, µs, the spread in brackets.\n\n",
		r.When.Format(time.DateOnly), m.Version, m.CPU, m.Cores, m.Kernel, r.pairs())
	b.WriteString("| | requests/s | host CPU, kernel | host CPU, offload | ratio | DPU CPU | p50 kernel, offload | p99 kernel, offload |\n" +
		"|---|--:|--:|--:|--:|--:|--:|--:|\n")
	for i, row := range rows() {
		if i >= len(r.Rows) {
			break
		}
		c := r.Rows[i]
		k, o := c.Kernel, c.Offload
		fmt.Fprintf(&b, "| %s | %s | %s (%.0f %%) | %s (%.0f %%) | %.1f | %s | %.0f, %.0f | %.0f, %.0f |\n", row.what, c.rates(),
			digits(k.HostCPU), 100*k.Spread, digits(o.HostCPU), 100*o.Spread, c.Ratio, digits(o.DPUCPU), k.P50, o.P50, k.P99, o.P99)
	}
	if r.Ceiling != nil && r.Proxy != nil {
		fmt.Fprintf(&b, "\nWith a DPU that answers at once (`pno bench ceiling`), nginx and its side of the offload take %.2f µs a request, "+
			"at %.2g million requests/s, HAProxy %.1f µs.\n", r.Ceiling.HostCPU, r.Ceiling.RPS/1e6, r.Proxy.HostCPU)
	}
	for _, c := range r.Rows {
		if c.OneShard != nil {
			fmt.Fprintf(&b, "One shard on a core of its own sends %.1f Gbit/s of 1 MiB bodies in frames of 1500 bytes (`pno bench bulk`).\n", c.OneShard.Gbits)
			break
		}
	}
	if r.Shards != nil {
		fmt.Fprintf(&b, "Two shards are %.2f of linear (`pno bench shards`).\n", r.Shards.Ratio)
	}
	return b.String()
}

// pairs is how many the medians are of.
func (r *Report) pairs() int {
	if len(r.Rows) == 0 {
		return 0
	}
	return len(r.Rows[0].Kernel.Runs)
}

// rates is the rate that both were offered; a load that keeps to none has two.
func (c *Comparison) rates() string {
	k, o := c.Kernel.RPS, c.Offload.RPS
	if c.RateOffered > 0 && min(k, o) > 0.9*float64(c.RateOffered) {
		return thousands(o)
	}
	return thousands(k) + ", " + thousands(o)
}

// digits writes a figure's three digits that count, 1.64 or 1,240.
func digits(f float64) string {
	if f >= 999.5 {
		return thousands(f)
	}
	return fmt.Sprintf("%.3g", f)
}

// thousands writes a number of three digits that count: 63,200.
func thousands(f float64) string {
	unit := 1
	for f/float64(unit) >= 1000 {
		unit *= 10
	}
	n := int(f/float64(unit)+0.5) * unit
	text := ""
	for ; n >= 1000; n /= 1000 {
		text = fmt.Sprintf(",%03d", n%1000) + text
	}
	return fmt.Sprint(n) + text
}

// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Report is the whole table: what make bench records.
type Report struct {
	Machine Machine       `json:"machine"`
	When    time.Time     `json:"when"`
	Rows    []*Comparison `json:"rows"`
	Sweep   []*Comparison `json:"sweep"`   // nginx, by payload
	Ceiling *Ceiling      `json:"ceiling"` // nginx
	Proxy   *Ceiling      `json:"ceiling_proxy"`
	Latency *Latency      `json:"latency"`
	Memory  *Memory       `json:"memory"`
	Shards  *Shards       `json:"shards"`
}

// sweep are the payloads of the sweep, in bytes.
var sweep = []int{64, 256, 1024, 4096, 16384, 65536}

// row is one measurement of the table.
type row struct {
	what    string
	measure func(context.Context, Options) (*Comparison, error)
}

func webRow(what string, f func(context.Context, Options, Web) (*Comparison, error), w Web) row {
	return row{what, func(ctx context.Context, o Options) (*Comparison, error) { return f(ctx, o, w) }}
}

func rows() []row {
	return []row{
		webRow("nginx 64 B, 64 connections", Nginx, Web{Size: 64, Conns: 64}),
		webRow("nginx 64 B, 8 connections", Nginx, Web{Size: 64, Conns: 8}),
		webRow("nginx 64 B, 1 connection", Nginx, Web{Size: 64, Conns: 1}),
		webRow("HAProxy http 64 B, 64 connections", HAProxy, Web{Size: 64, Conns: 64}),
		{"redis GET 64 B, 50 connections", func(ctx context.Context, o Options) (*Comparison, error) { return Redis(ctx, o, 64, 50) }},
		webRow("nginx 64 B, new connection each", Conns, Web{Size: 64, Conns: 64}),
		webRow("nginx 1 MiB, sendfile off", Bulk, Web{Size: 1 << 20, Conns: 8}),
		webRow("nginx 1 MiB, sendfile on", Bulk, Web{Size: 1 << 20, Conns: 8, Sendfile: true}),
		webRow("HAProxy tcp splice 1 MiB", Splice, Web{Size: 1 << 20, Conns: 8, Sendfile: true}),
	}
}

// Table measures everything; idle is the number of idle connections.
func Table(ctx context.Context, o Options, idle int) (*Report, error) {
	r := &Report{Machine: machine(), When: time.Now().UTC().Truncate(time.Second)}
	for _, row := range rows() {
		o.Log("== %s", row.what)
		c, err := row.measure(ctx, o)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", row.what, err)
		}
		r.Rows = append(r.Rows, c)
	}
	for _, size := range sweep {
		o.Log("== nginx, %d bytes", size)
		c, err := Nginx(ctx, o, Web{Size: size, Conns: 64})
		if err != nil {
			return nil, fmt.Errorf("nginx, %d bytes: %w", size, err)
		}
		r.Sweep = append(r.Sweep, c)
	}
	var err error
	o.Log("== the host's ceiling")
	if r.Ceiling, err = MeasureCeiling(ctx, o, Web{Size: 64, Conns: 64}, "nginx"); err != nil {
		return nil, fmt.Errorf("the host's ceiling: %w", err)
	}
	if r.Proxy, err = MeasureCeiling(ctx, o, Web{Size: 64, Conns: 64}, "haproxy"); err != nil {
		return nil, fmt.Errorf("the host's ceiling, HAProxy: %w", err)
	}
	o.Log("== latency by load")
	if r.Latency, err = MeasureLatency(ctx, o, Web{Size: 64, Conns: 64}); err != nil {
		return nil, fmt.Errorf("latency by load: %w", err)
	}
	o.Log("== memory of idle connections")
	if r.Memory, err = MeasureMemory(ctx, o, idle); err != nil {
		return nil, fmt.Errorf("memory of idle connections: %w", err)
	}
	o.Log("== two shards against one")
	if r.Shards, err = MeasureShards(ctx, o, 64); err != nil {
		return nil, fmt.Errorf("two shards against one: %w", err)
	}
	return r, nil
}

// CanWrite says whether a folder for results is there, or can be made, and takes files.
func CanWrite(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make a folder for the results: %w", err)
	}
	f, err := os.CreateTemp(dir, ".results-")
	if err != nil {
		return fmt.Errorf("record results: %w", err)
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

// Write records the report in a folder: JSON, a table in Markdown, and plots.
func (r *Report) Write(dir string) error {
	if err := CanWrite(dir); err != nil {
		return err
	}
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the results: %w", err)
	}
	files := map[string]string{"results.json": string(b) + "\n", "results.md": r.Markdown()}
	for name, p := range r.plots() {
		files[name] = p.svg()
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return fmt.Errorf("record the results: %w", err)
		}
	}
	return nil
}

// ReadReport reads a report that Write recorded.
func ReadReport(path string) (*Report, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read a report: %w", err)
	}
	var r Report
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("read the report %s: %w", path, err)
	}
	return &r, nil
}

// Markdown is the report as a table, with facts of the machine.
func (r *Report) Markdown() string {
	var b strings.Builder
	m := r.Machine
	fmt.Fprintf(&b, "%s, %d cores, Linux %s, %s, pno %s, %s.\n\n", m.CPU, m.Cores, m.Kernel, m.Go, m.Version, r.When.Format(time.DateOnly))
	b.WriteString("CPU time in µs a request (of a proxy: both sides), medians; the spread is (max − min) ÷ median.\n\n")
	b.WriteString("| | kernel host | spread | offload host | spread | kernel ÷ offload | DPU | p50 kernel, offload µs | p99 kernel, offload µs | requests/s | failed |\n")
	b.WriteString("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n")
	line := func(what string, c *Comparison) {
		k, o := c.Kernel, c.Offload
		fmt.Fprintf(&b, "| %s | %.2f | %.0f %% | %.2f | %.0f %% | **%.2f** | %.2f | %.0f, %.0f | %.0f, %.0f | %.0f, %.0f | %d, %d |\n", what,
			k.HostCPU, 100*k.Spread, o.HostCPU, 100*o.Spread, c.Ratio, o.DPUCPU, k.P50, o.P50, k.P99, o.P99, k.RPS, o.RPS, k.Failed, o.Failed)
	}
	for i, row := range rows() {
		if i < len(r.Rows) {
			line(row.what, r.Rows[i])
		}
	}
	for _, c := range r.Sweep {
		line(fmt.Sprintf("nginx %d B", c.Size), c)
	}
	for i, row := range rows() {
		if i < len(r.Rows) && r.Rows[i].OneShard != nil {
			fmt.Fprintf(&b, "\n%s, %v\n", row.what, r.Rows[i].OneShard)
		}
	}
	for _, c := range []*Ceiling{r.Ceiling, r.Proxy} {
		if c != nil {
			fmt.Fprintf(&b, "\nThe host's ceiling, %s %d B against a DPU that answers at once: **%.2f µs** of host CPU a request (spread %.0f %%) at %.0f requests/s.\n",
				c.Program, c.Size, c.HostCPU, 100*c.Spread, c.RPS)
		}
	}
	if s := r.Shards; s != nil {
		fmt.Fprintf(&b, "\nTwo shards against one, virtual wire, %d B, %d connections each: **%.2f** of linear, by the cheaper control. DPU CPU a request: "+
			"two shards %.2f µs (spread %.0f %%), one %.2f µs (%.0f %%), two processes of one each, which share nothing, %.2f µs (%.0f %%); waiting for locks %.3f, %.3f and %.3f µs.\n",
			s.Size, s.Conns, s.Ratio, s.Two.DPUCPU, 100*s.Two.Spread, s.One.DPUCPU, 100*s.One.Spread, s.Apart.DPUCPU, 100*s.Apart.Spread,
			s.Two.Waited, s.One.Waited, s.Apart.Waited)
	}
	if r.Memory != nil {
		b.WriteString("\n| idle connections | host bytes each | with the rings | DPU bytes each | rings, MB in all | host CPU | DPU CPU |\n|---|--:|--:|--:|--:|--:|--:|\n")
		use := func(name string, u MemoryUse) {
			fmt.Fprintf(&b, "| %s, %d | %.0f | %.0f | %.0f | %.1f | %.2f %% | %.2f %% |\n", name, u.Conns, u.HostBytes, u.WithRings, u.DPUBytes,
				float64(u.Rings)/1e6, u.HostIdle, u.DPUIdle)
		}
		use("kernel", r.Memory.Kernel)
		for _, u := range r.Memory.Steps {
			use("offload", u)
		}
	}
	return b.String()
}

// plots returns the drawings by file name.
func (r *Report) plots() map[string]plot {
	out := map[string]plot{}
	kernel, offload := series{name: "kernel"}, series{name: "offload"}
	for _, c := range r.Sweep {
		x := float64(c.Size)
		kernel.points = append(kernel.points, point{x, c.Kernel.HostCPU})
		offload.points = append(offload.points, point{x, c.Offload.HostCPU})
	}
	out["cpu-by-payload.svg"] = plot{title: "Host CPU a request, nginx", x: "bytes of a body", y: "µs", logX: true,
		series: []series{kernel, offload}}
	if r.Latency != nil {
		lines := []series{{name: "kernel p50"}, {name: "offload p50"}, {name: "kernel p99"}, {name: "offload p99"}}
		for _, p := range r.Latency.Points {
			for i, y := range []float64{p.Kernel.P50, p.Offload.P50, p.Kernel.P99, p.Offload.P99} {
				lines[i].points = append(lines[i].points, point{float64(p.Rate), y})
			}
		}
		out["latency-by-load.svg"] = plot{title: "Waiting time, nginx 64 B", x: "requests a second", y: "µs", series: lines}
	}
	if r.Memory != nil {
		host, dpu := series{name: "host"}, series{name: "DPU"}
		for _, u := range r.Memory.Steps {
			host.points = append(host.points, point{float64(u.Conns), u.HostBytes})
			dpu.points = append(dpu.points, point{float64(u.Conns), u.DPUBytes})
		}
		out["memory-by-connections.svg"] = plot{title: "Memory of an idle connection", x: "connections", y: "bytes", series: []series{host, dpu}}
	}
	return out
}

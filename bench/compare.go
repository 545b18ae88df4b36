// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Options are common to all benchmarks.
type Options struct {
	Bin      string        // folder of the programs and libraries
	Duration time.Duration // of one measured run
	Pairs    int           // runs of each kind, in turn; medians are reported
	Rate     int           // requests a second offered; 0: chosen from the two maxima
	Log      func(format string, args ...any)
}

func (o Options) check() error {
	if o.Duration <= 0 || o.Pairs < 1 || o.Rate < 0 {
		return errors.New("duration and pairs must be positive, and the rate not negative")
	}
	return nil
}

// scenario is what is measured: a program on the host, and the load on it.
type scenario struct {
	Comparison // name and shape
	serve      func(context.Context, *site) error
	load       func(*site) generator
	saturate   bool // see OneShard
}

// generator loads a server for a time, at a rate or, with 0, as much as goes.
type generator interface {
	run(ctx context.Context, d time.Duration, rate int) (loadResult, error)
	steady() bool // whether it can keep to a rate
}

// loadResult is what the clients saw.
type loadResult struct {
	requests int
	failed   int
	elapsed  time.Duration
	p50, p99 time.Duration
}

// Run is one measured run, or the median of several, field by field.
type Run struct {
	RPS         float64 `json:"rps"`
	HostCPU     float64 `json:"host_cpu_us_per_req"`
	HostProcess float64 `json:"host_process_us_per_req"`
	HostSoftirq float64 `json:"host_softirq_us_per_req"`
	DPUCPU      float64 `json:"dpu_cpu_us_per_req"`
	P50         float64 `json:"p50_us"`
	P99         float64 `json:"p99_us"`
	Gbits       float64 `json:"gbit_s"` // of bodies
	Failed      int     `json:"failed"`
	Spread      float64 `json:"host_cpu_spread"` // (max − min) / median over the runs
	Runs        []Run   `json:"runs,omitempty"`
}

// Comparison is a benchmark's result.
type Comparison struct {
	Benchmark   string  `json:"benchmark"`
	Size        int     `json:"size"` // bytes of a body or value
	Conns       int     `json:"conns"`
	Close       bool    `json:"close"` // a new connection for each request
	Sendfile    bool    `json:"sendfile"`
	RateOffered int     `json:"rate_offered"` // 0: as much as goes
	MaxKernel   float64 `json:"max_rps_kernel"`
	MaxOffload  float64 `json:"max_rps_offload"`
	Kernel      Run     `json:"kernel"`
	Offload     Run     `json:"offload"`
	Ratio       float64 `json:"ratio"` // kernel host CPU per request ÷ offload's
	Machine     Machine `json:"machine"`

	OneShard *OneShard `json:"one_shard,omitempty"` // of bulk
}

// subject is a site under load.
type subject struct {
	*site
	load  generator
	probe cpuProbe
	max   *float64 // where its maximum goes
	out   *Run
}

// compare measures a scenario on both sites.
func compare(ctx context.Context, o Options, sc scenario) (*Comparison, error) {
	c := sc.Comparison
	err := c.on(ctx, o, sc, func(subjects []*subject) error {
		if err := c.measure(ctx, o, subjects); err != nil || !sc.saturate {
			return err
		}
		var err error
		c.OneShard, err = subjects[len(subjects)-1].measureOneShard(ctx, o, c.Conns)
		return err
	})
	if err != nil {
		return nil, err
	}
	if c.Offload.HostCPU > 0 {
		c.Ratio = c.Kernel.HostCPU / c.Offload.HostCPU
	}
	return &c, nil
}

// on builds both sites, has f use them, and takes them down.
func (c *Comparison) on(ctx context.Context, o Options, sc scenario, f func([]*subject) error) error {
	if err := o.check(); err != nil {
		return err
	}
	if sc.Conns < 1 || sc.Size < 0 {
		return errors.New("there must be a connection, and the size must not be negative")
	}
	t, err := newTopology(o.Bin, "ethtool", "h2load", "wrk", "nginx", "haproxy", "redis-server", "redis-benchmark")
	if err != nil {
		return err
	}
	defer t.Close()
	c.Machine = machine()
	var subjects []*subject
	for _, s := range []struct {
		build func(context.Context) (*site, error)
		max   *float64
		out   *Run
	}{{t.kernelSite, &c.MaxKernel, &c.Kernel}, {t.offloadSite, &c.MaxOffload, &c.Offload}} {
		site, err := s.build(ctx)
		if err != nil {
			return err
		}
		if err := sc.serve(ctx, site); err != nil {
			return fmt.Errorf("%w\ndpud: %s\nhostd: %s", err, t.log("dpud"), t.log("hostd"))
		}
		subjects = append(subjects, &subject{site: site, load: sc.load(site), max: s.max, out: s.out,
			probe: cpuProbe{host: site.host, dpu: site.dpu, core: 0}})
	}
	return f(subjects)
}

// measure runs the subjects in turn.
func (c *Comparison) measure(ctx context.Context, o Options, subjects []*subject) error {
	if err := c.chooseRate(ctx, o, subjects); err != nil {
		return err
	}
	return pairs(ctx, o, subjects, c.RateOffered, c.Size)
}

// pairs runs the subjects in turn, o.Pairs times, and leaves the medians.
func pairs(ctx context.Context, o Options, subjects []*subject, rate, size int) error {
	for i := range o.Pairs {
		for _, s := range subjects {
			r, err := s.measure(ctx, o.Duration, rate, size)
			if err != nil {
				return fmt.Errorf("measure %s: %w\n%s", s.name, err, s.t.log(s.name))
			}
			o.Log("pair %d %s: %.0f req/s, host %.2f µs, DPU %.2f µs a request, p50 %.0f µs, p99 %.0f µs",
				i+1, s.name, r.RPS, r.HostCPU, r.DPUCPU, r.P50, r.P99)
			s.out.Runs = append(s.out.Runs, r)
		}
	}
	for _, s := range subjects {
		*s.out = median(s.out.Runs)
	}
	return nil
}

// chooseRate measures both maxima shortly and, unless a rate is asked for,
// offers three quarters of the lower one.
func (c *Comparison) chooseRate(ctx context.Context, o Options, subjects []*subject) error {
	lowest := 0.0
	for _, s := range subjects {
		r, err := s.measure(ctx, min(o.Duration, 2*time.Second), 0, c.Size)
		if err != nil {
			return fmt.Errorf("find the maximum of %s: %w\n%s", s.name, err, s.t.log(s.name))
		}
		*s.max = r.RPS
		if lowest == 0 || r.RPS < lowest {
			lowest = r.RPS
		}
		o.Log("maximum %s: %.0f req/s, host %.2f µs, DPU %.2f µs a request", s.name, r.RPS, r.HostCPU, r.DPUCPU)
	}
	switch {
	case !subjects[0].load.steady():
		c.RateOffered = 0
	case o.Rate > 0:
		c.RateOffered = o.Rate
	default:
		c.RateOffered = max(1, int(0.75*lowest))
	}
	return nil
}

func (s *subject) measure(ctx context.Context, d time.Duration, rate, size int) (Run, error) {
	if err := s.probe.start(); err != nil {
		return Run{}, err
	}
	res, err := s.load.run(ctx, d, rate)
	if err != nil {
		return Run{}, err
	}
	host, softirq, dpu, err := s.probe.stop()
	if err != nil {
		return Run{}, err
	}
	us := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }
	per := func(d time.Duration) float64 { return us(d) / float64(res.requests) }
	rps := float64(res.requests) / res.elapsed.Seconds()
	return Run{
		RPS: rps, Gbits: rps * float64(size) * 8 / 1e9,
		HostCPU: per(host + softirq), HostProcess: per(host), HostSoftirq: per(softirq), DPUCPU: per(dpu),
		P50: us(res.p50), P99: us(res.p99), Failed: res.failed,
	}, nil
}

// median takes the median of each field.
func median(runs []Run) Run {
	field := func(get func(Run) float64) float64 { return medianOf(runs, get) }
	m := Run{
		RPS:         field(func(r Run) float64 { return r.RPS }),
		HostCPU:     field(func(r Run) float64 { return r.HostCPU }),
		HostProcess: field(func(r Run) float64 { return r.HostProcess }),
		HostSoftirq: field(func(r Run) float64 { return r.HostSoftirq }),
		DPUCPU:      field(func(r Run) float64 { return r.DPUCPU }),
		P50:         field(func(r Run) float64 { return r.P50 }),
		P99:         field(func(r Run) float64 { return r.P99 }),
		Gbits:       field(func(r Run) float64 { return r.Gbits }),
		Spread:      spreadOf(runs, func(r Run) float64 { return r.HostCPU }),
		Runs:        runs,
	}
	for _, r := range runs {
		m.Failed += r.Failed
	}
	return m
}

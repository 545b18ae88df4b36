// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// NginxOptions shape the nginx benchmark.
type NginxOptions struct {
	Bin      string // folder of dpud, hostd, pno and libpno.so
	Size     int    // body bytes
	Conns    int
	Duration time.Duration // of one measured run
	Pairs    int           // kernel and offload runs, in turn; medians are reported
	Rate     int           // requests a second offered; 0: chosen from the two maxima
	Close    bool          // a new connection for each request
	Log      func(format string, args ...any)
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
	Failed      int     `json:"failed"`
	Spread      float64 `json:"host_cpu_spread"` // (max − min) / median over the runs
	Runs        []Run   `json:"runs,omitempty"`
}

// Comparison is a benchmark's result.
type Comparison struct {
	Benchmark   string  `json:"benchmark"`
	Size        int     `json:"size"`
	Conns       int     `json:"conns"`
	Close       bool    `json:"close"`
	RateOffered int     `json:"rate_offered"`
	MaxKernel   float64 `json:"max_rps_kernel"`
	MaxOffload  float64 `json:"max_rps_offload"`
	Kernel      Run     `json:"kernel"`
	Offload     Run     `json:"offload"`
	Ratio       float64 `json:"ratio"` // kernel host CPU per request ÷ offload's
	Machine     Machine `json:"machine"`
}

const (
	kernelAddr  = "198.18.1.2"
	offloadAddr = "198.18.2.2"
)

// subject is one of the two systems compared.
type subject struct {
	name  string
	load  load
	probe cpuProbe
}

// Nginx compares one nginx worker over kernel sockets with the same over the
// offload.
func Nginx(ctx context.Context, o NginxOptions) (*Comparison, error) {
	if o.Size < 0 || o.Conns < 1 || o.Duration <= 0 || o.Pairs < 1 {
		return nil, errors.New("size, conns, duration and pairs must be positive")
	}
	t, err := newTopology(o.Bin)
	if err != nil {
		return nil, err
	}
	defer t.Close()
	kernel, err := t.kernelNginx(ctx, o)
	if err != nil {
		return nil, err
	}
	offload, err := t.offloadNginx(ctx, o)
	if err != nil {
		return nil, err
	}
	c := &Comparison{Benchmark: "nginx", Size: o.Size, Conns: o.Conns, Close: o.Close, Machine: machine()}
	if err := c.chooseRate(ctx, o, kernel, offload); err != nil {
		return nil, err
	}
	for i := range o.Pairs {
		for _, s := range []struct {
			sub *subject
			out *Run
		}{{kernel, &c.Kernel}, {offload, &c.Offload}} {
			r, err := s.sub.measure(ctx, o.Duration, c.RateOffered)
			if err != nil {
				return nil, fmt.Errorf("measure %s: %w\n%s", s.sub.name, err, t.log(s.sub.name))
			}
			o.Log("pair %d %s: %.0f req/s, host %.2f µs, DPU %.2f µs a request, p50 %.0f µs, p99 %.0f µs",
				i+1, s.sub.name, r.RPS, r.HostCPU, r.DPUCPU, r.P50, r.P99)
			s.out.Runs = append(s.out.Runs, r)
		}
	}
	c.Kernel = median(c.Kernel.Runs)
	c.Offload = median(c.Offload.Runs)
	if c.Offload.HostCPU > 0 {
		c.Ratio = c.Kernel.HostCPU / c.Offload.HostCPU
	}
	return c, nil
}

// chooseRate measures both maxima shortly and, unless a rate is asked for,
// offers three quarters of the lower one.
func (c *Comparison) chooseRate(ctx context.Context, o NginxOptions, kernel, offload *subject) error {
	for _, s := range []struct {
		sub *subject
		out *float64
	}{{kernel, &c.MaxKernel}, {offload, &c.MaxOffload}} {
		r, err := s.sub.measure(ctx, min(o.Duration, 2*time.Second), 0)
		if err != nil {
			return fmt.Errorf("find the maximum of %s: %w", s.sub.name, err)
		}
		*s.out = r.RPS
		o.Log("maximum %s: %.0f req/s, host %.2f µs, DPU %.2f µs a request", s.sub.name, r.RPS, r.HostCPU, r.DPUCPU)
	}
	c.RateOffered = o.Rate
	if o.Rate == 0 {
		c.RateOffered = int(0.75 * min(c.MaxKernel, c.MaxOffload))
	}
	return nil
}

func (s *subject) measure(ctx context.Context, d time.Duration, rate int) (Run, error) {
	l := s.load
	l.duration, l.rate = d, rate
	if err := s.probe.start(); err != nil {
		return Run{}, err
	}
	res, err := l.run(ctx)
	if err != nil {
		return Run{}, err
	}
	host, softirq, dpu, err := s.probe.stop()
	if err != nil {
		return Run{}, err
	}
	per := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 / float64(res.requests) }
	us := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }
	return Run{
		RPS:     float64(res.requests) / res.elapsed.Seconds(),
		HostCPU: per(host + softirq), HostProcess: per(host), HostSoftirq: per(softirq), DPUCPU: per(dpu),
		P50: us(res.p50), P99: us(res.p99), Failed: res.failed,
	}, nil
}

// median takes the median of each field.
func median(runs []Run) Run {
	field := func(get func(Run) float64) float64 {
		v := make([]float64, len(runs))
		for i, r := range runs {
			v[i] = get(r)
		}
		slices.Sort(v)
		return v[len(v)/2]
	}
	m := Run{
		RPS:         field(func(r Run) float64 { return r.RPS }),
		HostCPU:     field(func(r Run) float64 { return r.HostCPU }),
		HostProcess: field(func(r Run) float64 { return r.HostProcess }),
		HostSoftirq: field(func(r Run) float64 { return r.HostSoftirq }),
		DPUCPU:      field(func(r Run) float64 { return r.DPUCPU }),
		P50:         field(func(r Run) float64 { return r.P50 }),
		P99:         field(func(r Run) float64 { return r.P99 }),
		Runs:        runs,
	}
	lo, hi := runs[0].HostCPU, runs[0].HostCPU
	for _, r := range runs {
		m.Failed += r.Failed
		lo, hi = min(lo, r.HostCPU), max(hi, r.HostCPU)
	}
	if m.HostCPU > 0 {
		m.Spread = (hi - lo) / m.HostCPU
	}
	return m
}

// kernelNginx brings nginx up over kernel TCP between two namespaces.
func (t *topology) kernelNginx(ctx context.Context, o NginxOptions) (*subject, error) {
	client, err := t.namespace("kc")
	if err != nil {
		return nil, err
	}
	host, err := t.namespace("kh")
	if err != nil {
		return nil, err
	}
	if err := t.veth(client, "198.18.1.1/24", host, kernelAddr+"/24"); err != nil {
		return nil, err
	}
	if err := errors.Join(t.steer(client, 1<<1), t.steer(host, 1<<0)); err != nil {
		return nil, err
	}
	conf, err := t.nginxConf("kernel", kernelAddr, o)
	if err != nil {
		return nil, err
	}
	c, err := t.start(host, proxyCore, "kernel", "nginx", "-c", conf)
	if err != nil {
		return nil, err
	}
	if err := t.waitHTTP(ctx, client, kernelAddr+":80", "kernel"); err != nil {
		return nil, err
	}
	return t.subject("kernel", client, kernelAddr, o, []int{c.Process.Pid}, nil), nil
}

// offloadNginx brings dpud, hostd and nginx under the shim up; nginx's
// namespace has no route to anywhere.
func (t *topology) offloadNginx(ctx context.Context, o NginxOptions) (*subject, error) {
	d, err := t.offload(ctx, "198.18.2.1/24", offloadAddr+"/24")
	if err != nil {
		return nil, err
	}
	conf, err := t.nginxConf("offload", offloadAddr, o)
	if err != nil {
		return nil, err
	}
	c, err := t.start(d.hostNS, proxyCore, "offload", filepath.Join(t.bin, "pno"), "run", "--hostd", d.hostdSocket, "--", "nginx", "-c", conf)
	if err != nil {
		return nil, err
	}
	if err := t.waitHTTP(ctx, d.clientNS, offloadAddr+":80", "offload"); err != nil {
		return nil, fmt.Errorf("%w\ndpud: %s\nhostd: %s", err, t.log("dpud"), t.log("hostd"))
	}
	return t.subject("offload", d.clientNS, offloadAddr, o, []int{c.Process.Pid, d.hostd}, []int{d.dpud}), nil
}

func (t *topology) subject(name, clientNS, addr string, o NginxOptions, host, dpu []int) *subject {
	return &subject{
		name:  name,
		load:  load{netns: clientNS, core: 1, url: "http://" + addr + "/", conns: o.Conns, dir: t.dir},
		probe: cpuProbe{host: host, dpu: dpu, core: 0},
	}
}

// nginxConf writes a configuration with one worker that answers size bytes
// from memory.
func (t *topology) nginxConf(name, addr string, o NginxOptions) (string, error) {
	keepalive := "keepalive_requests 100000000; keepalive_timeout 3600s;"
	if o.Close {
		keepalive = "keepalive_timeout 0;"
	}
	root := filepath.Join(t.dir, name+"-root")
	if err := os.MkdirAll(root, 0o755); err != nil {
		return "", fmt.Errorf("make nginx's document root: %w", err)
	}
	body := strings.Repeat("0123456789abcdef", o.Size/16+1)[:o.Size]
	location := `location / { return 200 "` + body + `"; }`
	if o.Size > 2048 { // too long for a literal: a file, kept open
		if err := os.WriteFile(filepath.Join(root, "index.html"), []byte(body), 0o644); err != nil {
			return "", fmt.Errorf("write nginx's page: %w", err)
		}
		location = "location / { root " + root + "; open_file_cache max=16; }"
	}
	conf := fmt.Sprintf(`worker_processes 1; daemon off; user root; error_log stderr; pid %[1]s/%[2]s.pid;
events { worker_connections 16384; }
http {
  access_log off; %[3]s
  client_body_temp_path %[1]s/t1; proxy_temp_path %[1]s/t2; fastcgi_temp_path %[1]s/t3;
  uwsgi_temp_path %[1]s/t4; scgi_temp_path %[1]s/t5;
  server { listen %[4]s:80; %[5]s }
}
`, t.dir, name, keepalive, addr, location)
	path := filepath.Join(t.dir, name+".conf")
	if err := os.WriteFile(path, []byte(conf), 0o644); err != nil {
		return "", fmt.Errorf("write nginx's configuration: %w", err)
	}
	return path, nil
}

// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"pno/bench/peer"
	"pno/dpu/control"
)

// Ceiling is what the host's side costs when nothing else is the limit.
type Ceiling struct {
	Benchmark string       `json:"benchmark"`
	Program   string       `json:"program"`
	Size      int          `json:"size"`
	Conns     int          `json:"conns"`
	Sendfile  bool         `json:"sendfile"`
	RPS       float64      `json:"rps"`                 // median
	HostCPU   float64      `json:"host_cpu_us_per_req"` // median
	Spread    float64      `json:"host_cpu_spread"`
	Runs      []CeilingRun `json:"runs"`
	Machine   Machine      `json:"machine"`
}

// CeilingRun is one measured run.
type CeilingRun struct {
	RPS     float64 `json:"rps"`
	HostCPU float64 `json:"host_cpu_us_per_req"`
}

// MeasureCeiling runs nginx or HAProxy under the real shim and hostd against a
// DPU that costs nothing and answers at once, from the other core.
func MeasureCeiling(ctx context.Context, o Options, w Web, program string) (*Ceiling, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	if w.Conns < 1 || w.Size < 0 {
		return nil, errors.New("there must be a connection, and the size must not be negative")
	}
	if program != "nginx" && program != "haproxy" {
		return nil, fmt.Errorf("unknown program %q: use nginx or haproxy", program)
	}
	t, err := newTopology(o.Bin, program)
	if err != nil {
		return nil, err
	}
	defer t.Close()
	ctx, cancel := context.WithCancel(ctx)
	p := peer.New([]byte("GET / HTTP/1.1\r\nHost: pno\r\n\r\n"), w.Conns)
	p.Serve(w.answer())
	running, err := t.runPeer(ctx, p)
	if err != nil {
		cancel()
		return nil, err
	}
	defer func() {
		t.Close() // the processes before the DPU that they use
		cancel()
		<-running
	}()
	s, err := t.ceilingSite(ctx, w, program)
	if err != nil {
		return nil, fmt.Errorf("%w\nhostd: %s", err, t.log("hostd"))
	}
	c := &Ceiling{Benchmark: "ceiling", Program: program, Size: w.Size, Conns: w.Conns, Sendfile: w.Sendfile, Machine: machine()}
	for i := range o.Pairs {
		r, err := s.ceiling(ctx, o.Duration, p)
		if err != nil {
			return nil, fmt.Errorf("%w\n%s", err, t.log(s.name))
		}
		o.Log("run %d: %.0f req/s, host %.2f µs a request", i+1, r.RPS, r.HostCPU)
		c.Runs = append(c.Runs, r)
	}
	c.summarise()
	return c, nil
}

// runPeer starts the DPU that costs nothing, on the other core. The channel is
// closed once it has ended.
func (t *topology) runPeer(ctx context.Context, p *peer.Peer) (<-chan struct{}, error) {
	srv := control.New(filepath.Join(t.dir, "dpud.sock"), p, slog.New(slog.DiscardHandler))
	l, err := srv.Listen()
	if err != nil {
		return nil, err
	}
	running := make(chan struct{})
	go func() { _ = srv.Serve(ctx, l) }() // ends with ctx
	go func() {
		defer close(running)
		// The thread ends with the goroutine, and its affinity with it.
		runtime.LockOSThread()
		core, _ := strconv.Atoi(otherCore)
		var set unix.CPUSet
		set.Set(core)
		_ = unix.SchedSetaffinity(0, &set) // on a machine with one core they share it
		_ = p.Run(ctx)
	}()
	return running, nil
}

// answer is what the peer says as a back end, in the words of nginx.
func (w Web) answer() []byte {
	return fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\nDate: Sun, 22 Nov 2026 00:00:00 GMT\r\n"+
		"Content-Type: text/plain\r\nContent-Length: %d\r\nConnection: keep-alive\r\n\r\n%s", w.Size, w.body())
}

// ceilingSite is a host with the program. A single process: forking would need
// a DPU that knows sharing.
func (t *topology) ceilingSite(ctx context.Context, w Web, program string) (*site, error) {
	s := &site{t: t, name: "ceiling", hostAddr: "198.18.3.2", clientAddr: "198.18.3.1"}
	var err error
	if s.hostNS, err = t.namespace("ch"); err != nil {
		return nil, err
	}
	if err := t.hostd(ctx, s); err != nil {
		return nil, err
	}
	var args []string
	if program == "haproxy" {
		args, err = t.haproxy(s, httpMode)
	} else if args, err = t.nginx(s.name, s.hostAddr, 80, w); err == nil {
		args = append(args, "-g", "master_process off;")
	}
	if err != nil {
		return nil, err
	}
	c, err := t.start(s.hostNS, proxyCore, s.name, append(s.wrap, args...)...)
	if err != nil {
		return nil, err
	}
	s.host = append(s.host, c.Process.Pid)
	return s, nil
}

// ceiling measures for d, once requests flow.
func (s *site) ceiling(ctx context.Context, d time.Duration, p *peer.Peer) (r CeilingRun, err error) {
	if err := flowing(ctx, p); err != nil {
		return r, err
	}
	probe := cpuProbe{host: s.host, core: 0}
	if err := probe.start(); err != nil {
		return r, err
	}
	before, begun := p.Answered(), time.Now()
	select {
	case <-ctx.Done():
		return r, ctx.Err()
	case <-time.After(d):
	}
	answers, took := p.Answered()-before, time.Since(begun)
	host, softirq, _, err := probe.stop()
	if err != nil {
		return r, err
	}
	if answers == 0 {
		return r, errors.New("the program answered nothing")
	}
	return CeilingRun{
		RPS:     float64(answers) / took.Seconds(),
		HostCPU: float64((host + softirq).Nanoseconds()) / 1e3 / float64(answers),
	}, nil
}

// flowing waits until requests are answered.
func flowing(ctx context.Context, p *peer.Peer) error {
	before := p.Answered()
	for deadline := time.Now().Add(startLimit); p.Answered() < before+100; {
		if time.Now().After(deadline) || ctx.Err() != nil {
			return errors.New("the program answers no request of the peer")
		}
		time.Sleep(10 * time.Millisecond)
	}
	return nil
}

func (c *Ceiling) summarise() {
	cpu := func(r CeilingRun) float64 { return r.HostCPU }
	c.RPS = medianOf(c.Runs, func(r CeilingRun) float64 { return r.RPS })
	c.HostCPU, c.Spread = medianOf(c.Runs, cpu), spreadOf(c.Runs, cpu)
}

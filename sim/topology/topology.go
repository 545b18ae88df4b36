// SPDX-License-Identifier: Apache-2.0

package topology

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"pno/dpu"
	"pno/dpu/netstack"
	"pno/dpu/rss"
	"pno/host"
	"pno/internal/admin"
	"pno/internal/target"
	"pno/sim/edge"
	"pno/sim/wire"
)

// startTimeout bounds each step of Start, stopTimeout all of Stop.
const (
	startTimeout = 10 * time.Second
	stopTimeout  = 5 * time.Second
	// A simulation often lives for seconds only.
	bypassEvery = 500 * time.Millisecond
)

// Sim is a running simulation.
type Sim struct {
	cfg      Config
	dir      *workdir
	dpu      *dpu.DPU
	host     *host.Server
	edge     *edge.Edge
	dpuEnd   *wire.Device
	edgeEnd  *wire.Device
	parts    []*part // in the order in which they were started
	stopOnce sync.Once
	final    *Report
}

// part is a server of the simulation that runs until its context ends.
type part struct {
	name   string
	cancel context.CancelFunc
	done   chan struct{}
	err    error // set before done is closed
}

// Start brings everything up. When it returns, programs can attach and clients
// can connect.
func Start(cfg Config) (*Sim, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, fmt.Errorf("start simulation: %w", err)
	}
	s := &Sim{cfg: cfg}
	if err := s.start(); err != nil {
		s.Stop()
		return nil, fmt.Errorf("start simulation: %w", err)
	}
	return s, nil
}

func (s *Sim) start() error {
	var err error
	if s.dir, err = newWorkdir(); err != nil {
		return err
	}
	for _, step := range []func() error{s.startWire, s.startDPU, s.startHost, s.startEdge, s.startAdmin} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func (s *Sim) startWire() error {
	var err error
	s.dpuEnd, s.edgeEnd, err = wire.Pair(wire.Config{
		Names:  [2]string{"dpu", "edge"},
		Queues: [2]int{s.cfg.Shards, 1},
		Steer:  [2]func([]byte) int{steer(s.cfg.Shards), nil},
		Faults: [2]wire.Faults{s.cfg.Faults, s.cfg.Faults},
		Seed:   s.cfg.Seed,
	})
	return err
}

func (s *Sim) startHost() error {
	mode := os.FileMode(0o600)
	if os.Geteuid() == 0 {
		mode = 0o666 // see newWorkdir
	}
	var err error
	s.host, err = host.New(host.Config{
		Listen: s.hostSocket(), SocketMode: mode, DPU: s.controlSocket(),
		Policy: s.cfg.Policy, Log: s.cfg.Log.With("part", "hostd"), BypassEvery: bypassEvery,
	})
	if err != nil {
		return err
	}
	if err := s.run("hostd", s.host.Serve, s.host.Ready()); err != nil {
		return err
	}
	if !s.host.WaitDPU(context.Background(), startTimeout) {
		return errors.New("the host agent did not reach the simulated DPU")
	}
	return nil
}

func (s *Sim) startEdge() error {
	var err error
	s.edge, err = edge.Start(edge.Config{
		Wire: s.edgeEnd, Prefixes: edgeAddresses,
		Publish: s.cfg.Publish, Forward: s.cfg.Forward, Log: s.cfg.Log.With("part", "edge"),
	})
	return err
}

func (s *Sim) startAdmin() error {
	for _, a := range []struct {
		name  string
		serve func(context.Context, admin.Options) error
	}{
		{"dpud admin", func(ctx context.Context, o admin.Options) error {
			return admin.ServeDPU(ctx, s.dir.file("admin-dpu.sock"), s.dpu, o)
		}},
		{"hostd admin", func(ctx context.Context, o admin.Options) error {
			return admin.ServeHost(ctx, s.dir.file("admin-host.sock"), s.host, o)
		}},
	} {
		ready := make(chan struct{})
		opts := admin.Options{Log: s.cfg.Log.With("part", a.name), Ready: func(net.Addr) { close(ready) }}
		if err := s.run(a.name, func(ctx context.Context) error { return a.serve(ctx, opts) }, ready); err != nil {
			return err
		}
	}
	return nil
}

// steer hands each frame for the DPU to the queue of its shard, as a card with
// the same hash would. Frames for all shards go to the first, which passes them
// on.
func steer(shards int) func([]byte) int {
	table := rss.New(shards, netstack.PortLow, netstack.PortHigh)
	return func(frame []byte) int { return max(table.Frame(frame), 0) }
}

// run starts a part and waits until it is ready.
func (s *Sim) run(name string, serve func(context.Context) error, ready <-chan struct{}) error {
	ctx, cancel := context.WithCancel(context.Background())
	p := &part{name: name, cancel: cancel, done: make(chan struct{})}
	s.parts = append(s.parts, p)
	go func() {
		defer close(p.done)
		p.err = serve(ctx)
	}()
	select {
	case <-ready:
		return nil
	case <-p.done:
		return fmt.Errorf("%s: %w", name, p.err)
	case <-time.After(startTimeout):
		return fmt.Errorf("%s is not ready after %v", name, startTimeout)
	}
}

func (s *Sim) controlSocket() string { return s.dir.file("dpud.sock") }
func (s *Sim) hostSocket() string    { return s.dir.file("hostd.sock") }

// Env returns the variables by which programs and tools find the simulation.
func (s *Sim) Env() []string {
	return []string{
		"PNO_HOSTD=" + s.hostSocket(),
		"PNO_ADMIN_DPU=unix://" + s.dir.file("admin-dpu.sock"),
		"PNO_ADMIN_HOST=unix://" + s.dir.file("admin-host.sock"),
	}
}

// NoteBypass counts a program that starts without the shim in it.
func (s *Sim) NoteBypass(pid int, name string, reason target.Reason) {
	s.host.NoteBypass(pid, name, reason)
}

// Published returns the addresses of the publish listeners on this machine, in
// the order of Config.Publish.
func (s *Sim) Published() []netip.AddrPort { return s.edge.Published() }

// Stop ends everything: connections are reset, sockets and files removed.
func (s *Sim) Stop() {
	s.stopOnce.Do(s.stop)
}

func (s *Sim) stop() {
	if s.dpu != nil && s.host != nil && s.edge != nil {
		final := s.Report()
		s.final = &final
	}
	if s.edge != nil {
		s.edge.Close()
	}
	deadline := time.After(stopTimeout)
	for i := len(s.parts) - 1; i >= 0; i-- {
		p := s.parts[i]
		p.cancel()
		select {
		case <-p.done:
			if p.err != nil {
				s.cfg.Log.Warn("part failed", "part", p.name, "err", p.err)
			}
		case <-deadline:
			s.cfg.Log.Warn("part does not stop", "part", p.name)
		}
	}
	for _, d := range []*wire.Device{s.dpuEnd, s.edgeEnd} {
		if d != nil {
			_ = d.Close()
		}
	}
	if s.dir != nil {
		s.dir.remove()
	}
}

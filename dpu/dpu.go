// SPDX-License-Identifier: Apache-2.0

// Package dpu is the data-processing unit as a whole: it builds the shards
// with their stacks, spreads the network ports over them, serves the control
// link to the host agent, and answers what the admin interface asks.
//
// A DPU's methods may be called by any goroutine. Data moves in the shards'
// goroutines only (package shard); what concerns a session as a whole is done
// here under one lock and reaches the shards through their mailboxes.
package dpu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"pno/dpu/control"
	"pno/dpu/link"
	"pno/dpu/netstack"
	"pno/dpu/rss"
	"pno/dpu/session"
	"pno/dpu/shard"
	"pno/offload"
)

// Interface is a network port with its addresses.
type Interface struct {
	Device    link.Device
	Driver    string // for reports
	Mode      string
	Addresses []netip.Prefix
	Routes    []netstack.Route // besides the addresses' own networks; 0.0.0.0/0 for a default gateway
}

// Config describes a DPU.
type Config struct {
	Shards     int   // 1 if 0
	Cores      []int // that the shards stay on, one each; none if empty
	Interfaces []Interface
	Loopback   bool // 127.0.0.0/8 and ::1 inside each shard
	TCP        netstack.TCP
	Moderation session.Moderation
	Poll       shard.Poll
	Control    string // path of the control socket; none if empty
	Version    string
	Log        *slog.Logger

	// WrapTransport, if set, is given each transport when a session opens
	// (one a shard), with the size of the session memory: the simulator puts
	// its PCIe model here.
	WrapTransport func(t offload.Transport, size uint64) offload.Transport
	// AgentTimeout is how long sessions outlive the host agent, and
	// AdoptTimeout how long a new agent has to ask for those of its
	// predecessor.
	AgentTimeout, AdoptTimeout time.Duration
	// ForkTimeout is how long after the end of a session the children of its
	// forks may be announced.
	ForkTimeout time.Duration
}

// Defaults of Config.
const (
	DefaultAgentTimeout = 5 * time.Minute
	DefaultForkTimeout  = 15 * time.Second // longer than an agent waits for the announcement
	DefaultAdoptTimeout = 30 * time.Second
)

// DPU is a running data-processing unit.
type DPU struct {
	c       Config
	rss     *rss.Table
	shards  []*shard.Shard
	control *control.Server
	started time.Time
	ready   chan struct{}

	mu       sync.Mutex // guards what follows
	sessions map[uint64]*process
	totals   totals
	agent    bool
	lapse    *time.Timer // ends sessions that no agent asks for
	closed   bool
}

// New builds a DPU; Serve runs it.
func New(c Config) (*DPU, error) {
	if c.Shards == 0 {
		c.Shards = 1
	}
	if c.Shards < 1 || c.Shards > offload.MaxShards {
		return nil, fmt.Errorf("%d shards, want 1 to %d", c.Shards, offload.MaxShards)
	}
	if len(c.Cores) > 0 {
		if len(c.Cores) != c.Shards {
			return nil, fmt.Errorf("%d cores for %d shards, want one each", len(c.Cores), c.Shards)
		}
		if err := shard.CheckCores(c.Cores); err != nil {
			return nil, err
		}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	if c.Poll.Spin == 0 {
		c.Poll.Spin = shard.DefaultSpin
	}
	if c.ForkTimeout == 0 {
		c.ForkTimeout = DefaultForkTimeout
	}
	if c.AgentTimeout == 0 {
		c.AgentTimeout = DefaultAgentTimeout
	}
	if c.AdoptTimeout == 0 {
		c.AdoptTimeout = DefaultAdoptTimeout
	}
	d := &DPU{
		c: c, rss: rss.New(c.Shards, netstack.PortLow, netstack.PortHigh),
		started: time.Now(), ready: make(chan struct{}), sessions: make(map[uint64]*process),
	}
	d.totals.reasons = make(map[string]uint64)
	for i := range c.Shards {
		s, err := d.newShard(i)
		if err != nil {
			return nil, err
		}
		d.shards = append(d.shards, s)
	}
	if err := shard.Connect(d.shards); err != nil {
		return nil, fmt.Errorf("connect shards: %w", err)
	}
	if c.Control != "" {
		d.control = control.New(c.Control, d, c.Log)
	}
	return d, nil
}

// newShard builds one shard with its share of each port's queues: queue i
// belongs to shard i modulo the number of shards.
func (d *DPU) newShard(index int) (*shard.Shard, error) {
	log := d.c.Log.With("shard", index)
	core := -1
	if len(d.c.Cores) > 0 {
		core = d.c.Cores[index]
	}
	s, err := shard.New(shard.Config{
		Index: index, Shards: d.c.Shards, RSS: d.rss, Poll: d.c.Poll, Core: core, Log: d.c.Log,
	})
	if err != nil {
		return nil, err
	}
	o := netstack.Options{Loopback: d.c.Loopback, TCP: d.c.TCP}
	var ports []shard.Port
	for _, n := range d.c.Interfaces {
		ep := netstack.NewEndpoint(n.Device.MAC(), n.Device.MTU(), s.Wake)
		p := shard.Port{Endpoint: ep, MTU: n.Device.MTU()}
		for q, queue := range n.Device.Queues() {
			if q%d.c.Shards == index {
				p.Queues = append(p.Queues, queue)
			}
		}
		ports = append(ports, p)
		o.Ports = append(o.Ports, netstack.Port{
			Name: n.Device.Name(), Endpoint: ep, Addresses: n.Addresses, Routes: n.Routes,
		})
	}
	st, err := netstack.New(o)
	if err != nil {
		return nil, fmt.Errorf("shard %d: %w", index, err)
	}
	t := session.NewTable(session.Config{
		Shard: index, Stack: st, RSS: d.rss, Moderation: d.c.Moderation, Log: log,
		Wake: s.Wake, Watch: s.Watch, Unwatch: s.Unwatch,
		Ended: func(id uint64, reason string) { go d.sessionFailed(id, reason) },
	})
	if err := s.Attach(st, t, ports); err != nil {
		return nil, err
	}
	return s, nil
}

// Ready is closed once Serve accepts host agents.
func (d *DPU) Ready() <-chan struct{} { return d.ready }

// Serve runs the DPU until ctx ends, and then closes its sessions; devices
// stay open. It may be called once.
func (d *DPU) Serve(ctx context.Context) error {
	inner, stop := context.WithCancel(ctx)
	defer stop()
	var wg sync.WaitGroup
	for _, s := range d.shards {
		wg.Go(func() { s.Run(inner) })
	}
	defer func() {
		stop()
		d.close()
		wg.Wait()
	}()
	if d.control == nil {
		close(d.ready)
		<-ctx.Done()
		return nil
	}
	l, err := d.control.Listen()
	if err != nil {
		return err
	}
	d.c.Log.Info("dpud serves", "control", d.c.Control, "shards", len(d.shards))
	close(d.ready)
	if err := d.control.Serve(ctx, l); err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("control link: %w", err)
	}
	return nil
}

// do runs f in a shard's loop.
func (d *DPU) do(s *shard.Shard, f func()) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second*10)
	defer cancel()
	if !s.Do(ctx, f) {
		return fmt.Errorf("shard %d does not answer", s.Index)
	}
	return nil
}

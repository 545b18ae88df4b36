// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	"pno/dpu"
	"pno/dpu/link"
	"pno/dpu/netstack"
	"pno/dpu/session"
	"pno/dpu/shard"
	"pno/internal/admin"
	"pno/internal/buildinfo"
	"pno/internal/daemon"
	"pno/offload"
)

// run serves until ctx ends. What it returns then is nil, else why it could
// not serve.
func run(ctx context.Context, set settings, stderr io.Writer) (err error) {
	log := daemon.NewLog(stderr, set.Log)
	log.Info("dpud starts", "version", buildinfo.Long())
	// Connections are what memory is allocated for. What the collector has to
	// do grows with how many come, and with how many there are, those in
	// TIME-WAIT included.
	daemon.CalmGC(200)
	for _, path := range []string{set.Control, set.Admin} {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return fmt.Errorf("make the folder of a socket: %w", err)
		}
	}
	dev, mode, err := openLink(set.Link)
	if err != nil {
		return err
	}
	defer func() {
		if e := dev.Close(); e != nil && err == nil {
			err = fmt.Errorf("close link: %w", e)
		}
	}()
	log.Info("link open", "interface", dev.Name(), "driver", set.Link.Driver, "mode", mode, "queues", len(dev.Queues()), "mtu", dev.MTU())
	d, err := dpu.New(dpuConfig(set, dev, mode, log))
	if err != nil {
		return err
	}
	return serve(ctx, set, d, log)
}

// serve runs the DPU and its admin API until ctx ends, or one of them breaks.
func serve(ctx context.Context, set settings, d *dpu.DPU, log *slog.Logger) error {
	outer := ctx
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	part := func(f func() error) {
		wg.Go(func() { cancel(f()) }) // only the first error is kept
	}
	adminReady := make(chan struct{})
	part(func() error { return d.Serve(ctx) })
	part(func() error {
		return admin.ServeDPU(ctx, set.Admin, d, admin.Options{
			Log: log, Metrics: set.metrics(), Reflection: set.Reflection,
			Ready: func(net.Addr) { close(adminReady) },
		})
	})
	wg.Go(func() {
		for _, ready := range []<-chan struct{}{d.Ready(), adminReady} {
			select {
			case <-ready:
			case <-ctx.Done():
				return
			}
		}
		daemon.Ready(log)
		daemon.Watchdog(ctx, log, func() bool { return d.Health().Serving })
	})

	<-ctx.Done()
	daemon.Stopping(log)
	wg.Wait()
	if outer.Err() == nil {
		return context.Cause(ctx)
	}
	log.Info("dpud stopped")
	return nil
}

// dpuConfig turns the configuration into the DPU's.
func dpuConfig(set settings, dev link.Device, mode string, log *slog.Logger) dpu.Config {
	shards := set.Shards
	if shards == 0 {
		shards = len(set.Cores)
	}
	if shards == 0 {
		shards = min(len(dev.Queues()), offload.MaxShards)
	}
	return dpu.Config{
		Shards: shards, Cores: set.Cores,
		Interfaces: []dpu.Interface{{
			Device: dev, Driver: set.Link.Driver, Mode: mode, Addresses: set.Addresses, Routes: set.routes(),
		}},
		Loopback:   set.Loopback,
		TCP:        set.TCP.stack(),
		Moderation: session.Moderation{MaxDelay: set.Moderation.MaxDelay.Std(), MaxEvents: set.Moderation.MaxEvents},
		Poll:       shard.Poll{Spin: set.Spin.Std()},
		Control:    set.Control,
		Version:    buildinfo.Version(),
		Log:        log,
	}
}

// routes are the configured ones, with the gateway's.
func (s *settings) routes() []netstack.Route {
	var out []netstack.Route
	for _, r := range s.Routes {
		out = append(out, netstack.Route{To: r.To.Masked(), Gateway: r.Via})
	}
	if s.Gateway.IsValid() {
		everywhere := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if s.Gateway.Is6() {
			everywhere = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		out = append(out, netstack.Route{To: everywhere, Gateway: s.Gateway})
	}
	return out
}

// metrics is the address of the endpoint, empty for none.
func (s *settings) metrics() string {
	if s.Metrics == none {
		return ""
	}
	return s.Metrics
}

func (s *tcpSettings) stack() netstack.TCP {
	return netstack.TCP{
		Congestion: s.Congestion, NoSACK: !s.SACK, RACK: s.RACK,
		SendBuffer: int(s.SendBuffer), SendMax: int(s.SendMax), RecvBuffer: int(s.RecvBuffer), RecvMax: int(s.RecvMax),
		TimeWait: s.TimeWait.Std(), MinRTO: s.MinRTO.Std(), SynRetries: s.SynRetries, Retransmits: s.Retransmits,
	}
}

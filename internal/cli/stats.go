// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	adminv1 "pno/proto/pno/admin/v1"
)

type statsFlags struct {
	watch, delta bool
	interval     time.Duration
	count        int
}

func (a *App) newStats() *cobra.Command {
	var f statsFlags
	cmd := &cobra.Command{
		Use:   "stats",
		Short: "Show what was offloaded, and what it took",
		Long: `Show what was offloaded, and what it took: sockets, connections, bytes, and the
packets, DMA operations, doorbells, interrupts and CPU time spent on them, as
totals since the daemons started. -o wide adds every counter of the network
stack and of the shims. With --watch, the table is drawn anew at each interval;
-o json then prints one object a line.`,
		Example: `  offloadctl stats
  offloadctl stats --watch --delta --interval 2s
  offloadctl stats -o json | jq .sockets_kernel`,
		Args: cobra.NoArgs,
		RunE: a.run(func(ctx context.Context) error { return a.runStats(ctx, f) }),
	}
	fl := cmd.Flags()
	fl.BoolVarP(&f.watch, "watch", "w", false, "go on until interrupted")
	fl.DurationVarP(&f.interval, "interval", "i", time.Second, "time between two outputs, or the time that --delta looks at")
	fl.BoolVarP(&f.delta, "delta", "d", false, "show what was counted within an interval, instead of totals")
	fl.IntVarP(&f.count, "count", "c", 0, "with --watch, stop after this many outputs")
	return cmd
}

func (a *App) runStats(ctx context.Context, f statsFlags) error {
	if f.count < 0 {
		return &exitError{exitUsage, fmt.Errorf("--count %d: want 0 or more", f.count)}
	}
	d, err := a.connect(ctx, needAny)
	if err != nil {
		return err
	}
	defer d.close()
	if !f.watch {
		f.count = 1
	}
	if !f.watch && !f.delta {
		now, err := a.statsOnce(ctx, d)
		if err != nil {
			return err
		}
		return a.writeStats(now, f)
	}
	err = a.watchStats(ctx, d, f)
	if ctx.Err() != nil && (errors.Is(err, context.Canceled) || status.Code(err) == codes.Canceled) {
		return nil // Ctrl-C is how a watch ends
	}
	return err
}

// sample is both sides' counters, taken nearly together.
type sample struct {
	both *adminv1.Stats
	// over is the time that deltas cover, 0 for totals.
	over time.Duration
}

// join makes one message of the sides that answered. Each side counts for
// itself, so the time is that of the later.
func join(sides ...*adminv1.Stats) *adminv1.Stats {
	out := new(adminv1.Stats)
	for _, s := range sides {
		if s.GetDpu() != nil {
			out.Dpu = s.GetDpu()
		}
		if s.GetHost() != nil {
			out.Host = s.GetHost()
		}
		if out.Time == nil || s.GetTime().AsTime().After(out.GetTime().AsTime()) {
			out.Time = s.GetTime()
		}
	}
	return out
}

func (a *App) statsOnce(ctx context.Context, d daemons) (sample, error) {
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	var sides []*adminv1.Stats
	for _, one := range d.each() {
		m, err := one.common.GetStats(ctx, &adminv1.GetStatsRequest{})
		if err != nil {
			return sample{}, daemonError(one, err)
		}
		sides = append(sides, m.GetStats())
	}
	return sample{both: join(sides...)}, nil
}

// watchStats prints samples as they come. With delta, the first sample of each
// side is only what the second is compared with.
func (a *App) watchStats(ctx context.Context, d daemons, f statsFlags) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	all := d.each()
	streams := make([]grpc.ServerStreamingClient[adminv1.WatchStatsResponse], len(all))
	for i, one := range all {
		s, err := one.common.WatchStats(ctx, &adminv1.WatchStatsRequest{Interval: durationpb.New(f.interval)})
		if err != nil {
			return daemonError(one, err)
		}
		streams[i] = s
	}
	before := make([]*adminv1.Stats, len(all))
	for printed := 0; f.count == 0 || printed < f.count; {
		sides := make([]*adminv1.Stats, len(all))
		first := false
		var over time.Duration
		for i, s := range streams {
			m, err := s.Recv()
			if err != nil {
				return daemonError(all[i], err)
			}
			now := m.GetStats()
			sides[i] = now
			if f.delta {
				first = before[i] == nil
				sides[i] = delta(now, before[i])
				over = now.GetTime().AsTime().Sub(before[i].GetTime().AsTime())
				before[i] = now
			}
		}
		if first {
			continue
		}
		if err := a.writeStats(sample{join(sides...), over}, f); err != nil {
			return err
		}
		printed++
	}
	return nil
}

// daemonError names the daemon that an error came from.
func daemonError(d *daemon, err error) error {
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("%s ended the stream", d.name)
	}
	s := status.Convert(err)
	return status.Error(s.Code(), d.name+": "+s.Message())
}

func (a *App) writeStats(s sample, f statsFlags) error {
	switch {
	case a.structured() && f.watch:
		return a.writeTreeLine(statsTree(s))
	case a.structured():
		return a.writeTree(statsTree(s))
	}
	if f.watch {
		if err := a.newScreen(); err != nil {
			return err
		}
	}
	return a.writeStatsTable(s)
}

// newScreen clears a terminal; elsewhere an empty line separates.
func (a *App) newScreen() error {
	text := "\n"
	if file, ok := a.Stdout.(*os.File); ok {
		if _, err := unix.IoctlGetTermios(int(file.Fd()), unix.TCGETS); err == nil {
			text = "\x1b[H\x1b[2J"
		}
	}
	_, err := io.WriteString(a.Stdout, text)
	return err
}

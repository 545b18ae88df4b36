// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"pno/bench"
)

func newBenchCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "bench",
		Short: "Measure a program without and with what pno does for it, in turn",
		Long: "Measure a program without and with what pno does for it, in turn: over kernel sockets and over the\n" +
			"offload, with a private key of its own and with one in the crypto cluster. The programs run in network\n" +
			"namespaces of their own on this machine. Needs root and two cores.",
		Args: cobra.NoArgs, // a benchmark that there is not is an error
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		// Whoever interrupts it wants the namespaces and processes gone too.
		PersistentPreRun: func(cmd *cobra.Command, _ []string) {
			end := []os.Signal{os.Interrupt, syscall.SIGTERM}
			if !signal.Ignored(syscall.SIGHUP) { // nohup
				end = append(end, syscall.SIGHUP)
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), end...)
			context.AfterFunc(ctx, stop)
			cmd.SetContext(ctx)
		},
	}
	c.AddCommand(
		newWebBenchCmd("nginx", "One nginx worker answering from memory, at equal offered load", bench.Nginx,
			bench.Web{Size: 64, Conns: 64}),
		newWebBenchCmd("conns", "One nginx worker with a new connection for each request", bench.Conns,
			bench.Web{Size: 64, Conns: 64}),
		newWebBenchCmd("bulk", "One nginx worker sending large bodies from a file", bench.Bulk,
			bench.Web{Size: 1 << 20, Conns: 8}),
		newWebBenchCmd("haproxy", "HAProxy in http mode, client and back end on the other machine", bench.HAProxy,
			bench.Web{Size: 64, Conns: 64}),
		newWebBenchCmd("splice", "HAProxy in tcp mode moving large bodies by splice", bench.Splice,
			bench.Web{Size: 1 << 20, Conns: 8, Sendfile: true}),
		newRedisBenchCmd(),
		newHandshakeBenchCmd(),
		newCryptoRPCBenchCmd(),
		newTLSLoadCmd(), newFloorPeerCmd(),
		newLatencyBenchCmd(), newMemoryBenchCmd(), newHoldCmd(), newDrainCmd(),
		newCeilingBenchCmd(), newShardsBenchCmd(), newLanesCmd(), newTableBenchCmd(),
	)
	for _, one := range c.Commands() {
		one.RunE = interruptible(one.RunE)
	}
	return c
}

// interruptible has a command that was told to stop say so, and not how the tools
// ended that it ran.
func interruptible(run func(*cobra.Command, []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		err := run(cmd, args)
		if err != nil && cmd.Context().Err() != nil {
			return &statusError{code: 128 + int(syscall.SIGINT), err: errors.New("interrupted")}
		}
		return err
	}
}

// webBench is a benchmark of answers over HTTP.
type webBench func(context.Context, bench.Options, bench.Web) (*bench.Comparison, error)

// benchFlags are those that every comparing benchmark has.
type benchFlags struct {
	bench.Options
	output string
}

func (b *benchFlags) add(c *cobra.Command) {
	f := c.Flags()
	f.DurationVar(&b.Duration, "duration", 5*time.Second, "length of one measured run")
	f.IntVar(&b.Pairs, "pairs", 5, "runs of each kind, in turn; medians are reported")
	f.StringVarP(&b.output, "output", "o", "table", "table or json")
}

// prepare checks the flags and finds the other programs.
func (b *benchFlags) prepare(cmd *cobra.Command) error {
	if b.output != "json" && b.output != "table" {
		return fmt.Errorf("unknown output format %q: use table or json", b.output)
	}
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find the other programs: %w", err)
	}
	b.Bin = filepath.Dir(exe)
	b.Log = func(format string, args ...any) { fmt.Fprintf(cmd.ErrOrStderr(), format+"\n", args...) }
	return nil
}

// printResult prints in the form that was asked for.
func printResult[R any](w io.Writer, output string, r R, table func(io.Writer, R) error) error {
	if output == "json" {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	return table(w, r)
}

func newWebBenchCmd(name, short string, measure webBench, w bench.Web) *cobra.Command {
	var b benchFlags
	c := &cobra.Command{
		Use:   name,
		Short: short,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := b.prepare(cmd); err != nil {
				return err
			}
			r, err := measure(cmd.Context(), b.Options, w)
			if err != nil {
				return err
			}
			return printResult(cmd.OutOrStdout(), b.output, r, printComparison)
		},
	}
	b.add(c)
	f := c.Flags()
	f.IntVar(&b.Rate, "rate", 0, "requests a second offered to both (0: three quarters of the lower maximum)")
	f.IntVar(&w.Size, "size", w.Size, "response body in bytes")
	f.IntVar(&w.Conns, "conns", w.Conns, "client connections")
	f.BoolVar(&w.Close, "close", w.Close, "a new connection for each request")
	f.BoolVar(&w.Sendfile, "sendfile", w.Sendfile, "have nginx send a body from a file by sendfile")
	return c
}

func newRedisBenchCmd() *cobra.Command {
	var b benchFlags
	var size, conns int
	c := &cobra.Command{
		Use:   "redis",
		Short: "redis-server answering GET, one request at a time on each connection",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := b.prepare(cmd); err != nil {
				return err
			}
			r, err := bench.Redis(cmd.Context(), b.Options, size, conns)
			if err != nil {
				return err
			}
			return printResult(cmd.OutOrStdout(), b.output, r, printComparison)
		},
	}
	b.add(c)
	c.Flags().IntVar(&size, "size", 64, "value in bytes")
	c.Flags().IntVar(&conns, "conns", 50, "client connections")
	return c
}

func printComparison(w io.Writer, c *bench.Comparison) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(t, "\treq/s\tGbit/s\thost µs/req\tspread\tDPU µs/req\tp50 µs\tp99 µs\tfailed\t\n")
	for _, r := range []struct {
		name string
		run  bench.Run
	}{{"kernel", c.Kernel}, {"offload", c.Offload}} {
		fmt.Fprintf(t, "%s\t%.0f\t%.2f\t%.2f\t%.0f %%\t%.2f\t%.0f\t%.0f\t%d\t\n", r.name, r.run.RPS, r.run.Gbits, r.run.HostCPU,
			100*r.run.Spread, r.run.DPUCPU, r.run.P50, r.run.P99, r.run.Failed)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	offered := "as many requests as go"
	if c.RateOffered > 0 {
		offered = fmt.Sprintf("%d req/s", c.RateOffered)
	}
	if _, err := fmt.Fprintf(w, "offered: %s; kernel ÷ offload host CPU: %.2f\n", offered, c.Ratio); err != nil || c.OneShard == nil {
		return err
	}
	_, err := fmt.Fprintf(w, "%v\n%v\n", c.OneShard, c.OneShard.Target)
	return err
}

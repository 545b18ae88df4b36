// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"pno/bench"
)

func newMemoryBenchCmd() *cobra.Command {
	var b benchFlags
	var conns int
	c := &cobra.Command{
		Use:   "memory",
		Short: "Memory of idle connections, and CPU of an idle system",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := b.prepare(cmd); err != nil {
				return err
			}
			m, err := bench.MeasureMemory(cmd.Context(), b.Options, conns)
			if err != nil {
				return err
			}
			return printResult(cmd.OutOrStdout(), b.output, m, printMemory)
		},
	}
	b.add(c)
	c.Flags().IntVar(&conns, "conns", 10000, "idle connections")
	return c
}

func printMemory(w io.Writer, m *bench.Memory) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(t, "\tconns\thost B/conn\twith rings\tDPU B/conn\trings MB\thost idle\tDPU idle\t\n")
	row := func(name string, u bench.MemoryUse) {
		fmt.Fprintf(t, "%s\t%d\t%.0f\t%.0f\t%.0f\t%.1f\t%.2f %%\t%.2f %%\t\n", name, u.Conns, u.HostBytes, u.WithRings, u.DPUBytes,
			float64(u.Rings)/1e6, u.HostIdle, u.DPUIdle)
	}
	row("kernel", m.Kernel)
	for _, u := range m.Steps {
		row("offload", u)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, g := range m.Targets {
		if _, err := fmt.Fprintln(w, g); err != nil {
			return err
		}
	}
	return nil
}

// newHoldCmd is a part of memory: a client that does nothing.
func newHoldCmd() *cobra.Command {
	return &cobra.Command{
		Use:    "hold FROM TO COUNT",
		Hidden: true,
		Args:   cobra.ExactArgs(3),
		RunE: func(cmd *cobra.Command, args []string) error {
			count, err := connections(args[2])
			if err != nil {
				return err
			}
			return bench.Hold(cmd.Context(), args[0], args[1], count)
		},
	}
}

// newDrainCmd is a part of bulk: a client that throws away what it gets.
func newDrainCmd() *cobra.Command {
	return &cobra.Command{
		Use:    "drain TO CONNS DURATION",
		Hidden: true,
		Args:   cobra.ExactArgs(3),
		RunE: func(cmd *cobra.Command, args []string) error {
			to, err := netip.ParseAddrPort(args[0])
			if err != nil || !to.Addr().Is4() {
				return fmt.Errorf("%q is not an IPv4 address and port", args[0])
			}
			conns, d, err := connsFor(args[1], args[2])
			if err != nil {
				return err
			}
			r, err := bench.Drain(cmd.Context(), to, conns, d)
			if err != nil {
				return err
			}
			return json.NewEncoder(cmd.OutOrStdout()).Encode(r)
		},
	}
}

func newLatencyBenchCmd() *cobra.Command {
	var b benchFlags
	w := bench.Web{Size: 64, Conns: 64}
	c := &cobra.Command{
		Use:   "latency",
		Short: "Waiting time of clients of one nginx worker, by offered load",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := b.prepare(cmd); err != nil {
				return err
			}
			l, err := bench.MeasureLatency(cmd.Context(), b.Options, w)
			if err != nil {
				return err
			}
			return printResult(cmd.OutOrStdout(), b.output, l, printLatency)
		},
	}
	b.add(c)
	c.Flags().IntVar(&w.Size, "size", w.Size, "response body in bytes")
	c.Flags().IntVar(&w.Conns, "conns", w.Conns, "client connections")
	return c
}

func printLatency(w io.Writer, l *bench.Latency) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(t, "offered\t\treq/s\thost µs/req\tspread\tp50 µs\tp99 µs\t\n")
	for _, p := range l.Points {
		line := func(rate, what string, r bench.Run) {
			fmt.Fprintf(t, "%s\t%s\t%.0f\t%.2f\t%.0f %%\t%.0f\t%.0f\t\n", rate, what, r.RPS, r.HostCPU, 100*r.Spread, r.P50, r.P99)
		}
		line(strconv.Itoa(p.Rate), "kernel", p.Kernel)
		line("", "offload", p.Offload)
	}
	return t.Flush()
}

func newCeilingBenchCmd() *cobra.Command {
	var b benchFlags
	var program string
	w := bench.Web{Size: 64, Conns: 64}
	c := &cobra.Command{
		Use:   "ceiling",
		Short: "What the host's side costs when the DPU costs nothing and answers at once",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := b.prepare(cmd); err != nil {
				return err
			}
			r, err := bench.MeasureCeiling(cmd.Context(), b.Options, w, program)
			if err != nil {
				return err
			}
			return printResult(cmd.OutOrStdout(), b.output, r, printCeiling)
		},
	}
	b.add(c)
	c.Flags().StringVar(&program, "program", "nginx", "nginx, or haproxy, whose back end is the DPU, too")
	c.Flags().IntVar(&w.Size, "size", w.Size, "response body in bytes")
	c.Flags().IntVar(&w.Conns, "conns", w.Conns, "client connections")
	c.Flags().BoolVar(&w.Sendfile, "sendfile", w.Sendfile, "have nginx send a body from a file by sendfile")
	return c
}

func printCeiling(w io.Writer, c *bench.Ceiling) error {
	_, err := fmt.Fprintf(w, "%.0f req/s, host %.2f µs a request (spread %.0f %%)\n", c.RPS, c.HostCPU, 100*c.Spread)
	return err
}

// connections is a number of connections, an argument of a part of a benchmark.
func connections(arg string) (int, error) {
	n, err := strconv.Atoi(arg)
	if err != nil {
		return 0, fmt.Errorf("number of connections: %w", err)
	}
	return n, nil
}

// connsFor is connections, and for how long.
func connsFor(number, length string) (n int, d time.Duration, err error) {
	if n, err = connections(number); err != nil {
		return 0, 0, err
	}
	if d, err = time.ParseDuration(length); err != nil {
		return 0, 0, fmt.Errorf("length of the run: %w", err)
	}
	return n, d, nil
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"pno/bench"
)

func newBenchCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "bench",
		Short: "Measure a program over kernel sockets and over the offload, in turn",
		Long: "Measure a program over kernel sockets and over the offload, in turn, in network namespaces\n" +
			"of its own on this machine. Needs root and two cores.",
	}
	c.AddCommand(newBenchNginxCmd())
	return c
}

func newBenchNginxCmd() *cobra.Command {
	var o bench.NginxOptions
	var output string
	c := &cobra.Command{
		Use:   "nginx",
		Short: "One nginx worker answering from memory, at equal offered load",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "json" && output != "table" {
				return fmt.Errorf("unknown output format %q: use table or json", output)
			}
			exe, err := os.Executable()
			if err != nil {
				return fmt.Errorf("find the other programs: %w", err)
			}
			o.Bin = filepath.Dir(exe)
			o.Log = func(format string, args ...any) { fmt.Fprintf(cmd.ErrOrStderr(), format+"\n", args...) }
			r, err := bench.Nginx(cmd.Context(), o)
			if err != nil {
				return err
			}
			if output == "json" {
				e := json.NewEncoder(cmd.OutOrStdout())
				e.SetIndent("", "  ")
				return e.Encode(r)
			}
			return printComparison(cmd.OutOrStdout(), r)
		},
	}
	f := c.Flags()
	f.IntVar(&o.Size, "size", 64, "response body in bytes")
	f.IntVar(&o.Conns, "conns", 64, "client connections")
	f.DurationVar(&o.Duration, "duration", 5*time.Second, "length of one measured run")
	f.IntVar(&o.Pairs, "pairs", 3, "kernel and offload runs, in turn; medians are reported")
	f.IntVar(&o.Rate, "rate", 0, "requests a second offered to both (0: three quarters of the lower maximum)")
	f.BoolVar(&o.Close, "close", false, "a new connection for each request")
	f.StringVarP(&output, "output", "o", "table", "table or json")
	return c
}

func printComparison(w io.Writer, c *bench.Comparison) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(t, "\treq/s\thost µs/req\tspread\tDPU µs/req\tp50 µs\tp99 µs\tfailed\t\n")
	for _, r := range []struct {
		name string
		run  bench.Run
	}{{"kernel", c.Kernel}, {"offload", c.Offload}} {
		fmt.Fprintf(t, "%s\t%.0f\t%.2f\t%.0f %%\t%.2f\t%.0f\t%.0f\t%d\t\n", r.name, r.run.RPS, r.run.HostCPU,
			100*r.run.Spread, r.run.DPUCPU, r.run.P50, r.run.P99, r.run.Failed)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "offered %d req/s; kernel ÷ offload host CPU: %.2f\n", c.RateOffered, c.Ratio)
	return err
}

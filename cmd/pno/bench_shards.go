// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"pno/bench"
	"pno/bench/lane"
)

func newShardsBenchCmd() *cobra.Command {
	var b benchFlags
	var conns int
	c := &cobra.Command{
		Use:   "shards",
		Short: "Two shards against one: DPU CPU per request on the virtual wire, and the locks waited for",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := b.prepare(cmd); err != nil {
				return err
			}
			r, err := bench.MeasureShards(cmd.Context(), b.Options, conns)
			if err != nil {
				return err
			}
			return printResult(cmd.OutOrStdout(), b.output, r, printShards)
		},
	}
	b.add(c)
	c.Flags().IntVar(&conns, "conns", 64, "connections of each shard")
	return c
}

// shownLocks is how much of a mutex profile the table has; JSON has all of it.
const shownLocks = 5

func printShards(w io.Writer, s *bench.Shards) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(t, "shards\treq/s\tDPU µs/req\tspread\tlock wait µs/req\t\n")
	line := func(what string, r bench.ShardRun) {
		fmt.Fprintf(t, "%s\t%.0f\t%.2f\t%.0f %%\t%.3f\t\n", what, r.RPS, r.DPUCPU, 100*r.Spread, r.Waited)
	}
	line("1", s.One)
	line("2", s.Two)
	line("2 of their own", s.Apart)
	if err := t.Flush(); err != nil {
		return err
	}
	for _, r := range []bench.ShardRun{s.One, s.Two} {
		fmt.Fprintf(w, "mutex profile, %d shards:\n", r.Shards)
		for i, l := range r.Locks {
			if i == shownLocks {
				break
			}
			fmt.Fprintf(w, "  %8.3f µs/req %7d times  %s\n", l.Waited, l.Times, l.Where)
		}
	}
	_, err := fmt.Fprintf(w, "DPU CPU per request: %.2f of linear (one shard ÷ two %.2f, two processes of one each ÷ two %.2f)\n", s.Ratio, s.OfOne, s.OfApart)
	return err
}

// newLanesCmd is a part of shards: one run, in a process of its own.
func newLanesCmd() *cobra.Command {
	return &cobra.Command{
		Use:    "lanes SHARDS CONNS DURATION [CORE...]",
		Hidden: true,
		Args:   cobra.MinimumNArgs(3),
		RunE: func(cmd *cobra.Command, args []string) error {
			shards, err := strconv.Atoi(args[0])
			if err != nil {
				return fmt.Errorf("number of shards: %w", err)
			}
			conns, d, err := connsFor(args[1], args[2])
			if err != nil {
				return err
			}
			var cores []int
			for _, a := range args[3:] {
				c, err := strconv.Atoi(a)
				if err != nil {
					return fmt.Errorf("number of a core: %w", err)
				}
				cores = append(cores, c)
			}
			r, err := lane.Run(cmd.Context(), lane.Load{Shards: shards, Conns: conns, Cores: cores}, d)
			if err != nil {
				return err
			}
			return json.NewEncoder(cmd.OutOrStdout()).Encode(r)
		},
	}
}

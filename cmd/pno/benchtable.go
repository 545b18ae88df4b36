// SPDX-License-Identifier: Apache-2.0

package main

import (
	"github.com/spf13/cobra"

	"pno/bench"
)

func newTableBenchCmd() *cobra.Command {
	var b benchFlags
	var idle int
	var dir string
	c := &cobra.Command{
		Use:   "table",
		Short: "Every comparison; records them as JSON, a table and plots",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := b.prepare(cmd); err != nil {
				return err
			}
			r, err := bench.Table(cmd.Context(), b.Options, idle)
			if err != nil {
				return err
			}
			return r.Write(dir)
		},
	}
	b.add(c)
	c.Flags().IntVar(&idle, "idle", 10000, "idle connections of the memory row")
	c.Flags().StringVar(&dir, "dir", "bench/results", "folder for the results")
	return c
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"pno/bench"
)

func newTableBenchCmd() *cobra.Command {
	var b benchFlags
	var idle int
	var dir, readme, from string
	c := &cobra.Command{
		Use:   "table",
		Short: "Every comparison; records them as JSON, a table and plots",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := b.prepare(cmd); err != nil {
				return err
			}
			if err := bench.CanWrite(dir); err != nil { // it would be a pity afterwards
				return err
			}
			if err := canShow(readme); err != nil {
				return err
			}
			r, err := measured(cmd.Context(), from, b.Options, idle)
			if err != nil {
				return err
			}
			if err := errors.Join(r.Write(dir), show(r, readme)); err != nil {
				return err
			}
			return printResult(cmd.OutOrStdout(), b.output, r, func(w io.Writer, r *bench.Report) error {
				_, err := io.WriteString(w, r.Markdown())
				return err
			})
		},
	}
	b.add(c)
	c.Flags().IntVar(&idle, "idle", 10000, "idle connections of the memory row")
	c.Flags().StringVar(&dir, "dir", "bench/results", "folder for the results")
	c.Flags().StringVar(&readme, "readme", "", "file that shows the figures, between two lines that say so")
	c.Flags().StringVar(&from, "from", "", "results.json to write again, instead of measuring")
	return c
}

// measured is a new report, or one that is recorded.
func measured(ctx context.Context, from string, o bench.Options, idle int) (*bench.Report, error) {
	if from == "" {
		return bench.Table(ctx, o, idle)
	}
	return bench.ReadReport(from)
}

// show puts a report's figures into a README, if one is named.
func show(r *bench.Report, readme string) error {
	if readme == "" {
		return nil
	}
	text, err := shown(r, readme)
	if err != nil {
		return err
	}
	if err := os.WriteFile(readme, []byte(text), 0o644); err != nil {
		return fmt.Errorf("show the figures: %w", err)
	}
	return nil
}

// canShow looks whether a README has a place for figures.
func canShow(readme string) error {
	if readme == "" {
		return nil
	}
	_, err := shown(&bench.Report{}, readme)
	return err
}

// shown is a README's text with the report's figures.
func shown(r *bench.Report, readme string) (string, error) {
	b, err := os.ReadFile(readme)
	if err != nil {
		return "", fmt.Errorf("show the figures: %w", err)
	}
	text, err := r.InReadme(string(b))
	if err != nil {
		return "", fmt.Errorf("show the figures in %s: %w", readme, err)
	}
	return text, nil
}

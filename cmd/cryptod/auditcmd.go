// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"pno/crypto/audit"
)

func newAuditCmd(code *int) *cobra.Command {
	var head, output string
	verify := &cobra.Command{
		Use:   "verify FILE…",
		Short: "Check that nothing was changed in an audit log, or taken out of it; oldest file first",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, files []string) error {
			var v audit.Verifier
			for _, name := range files {
				f, err := os.Open(name)
				if err != nil {
					return fmt.Errorf("verify audit log: %w", err)
				}
				err = v.Verify(name, f)
				f.Close()
				if err != nil {
					return err
				}
			}
			if v.Last == 0 {
				// A worker begins a log with a record; it is empty for a moment after a
				// rotation only, when the former file is there to be given, too.
				return fmt.Errorf("no records in %s: nothing is verified; a log that a worker has written is never empty unless somebody emptied it, or it was rotated just now (give the former file, too)",
					strings.Join(files, ", "))
			}
			if head != "" && head != v.Head {
				return fmt.Errorf("the log ends with %s, not with %s: its end is missing, or it went on since", v.Head, head)
			}
			return printSummary(cmd, output, &v.Summary)
		},
	}
	verify.Flags().StringVar(&head, "head", "", "the chain that the last record must have, kept from elsewhere")
	verify.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	cmd := &cobra.Command{Use: "audit", Short: "Look at audit logs", PersistentPreRun: func(*cobra.Command, []string) { *code = exitFailed }}
	cmd.AddCommand(verify)
	return cmd
}

func printSummary(cmd *cobra.Command, output string, s *audit.Summary) error {
	out := cmd.OutOrStdout()
	switch output {
	case "json":
		return writeJSON(out, s)
	case "text":
		fmt.Fprintf(out, "good: %d operations and refusals, %d lost; records %d to %d\nhead: %s\n", s.Records, s.Lost, s.First, s.Last, s.Head)
		return nil
	}
	return fmt.Errorf("%q is not a form of output; use text or json", output)
}

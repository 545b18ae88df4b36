// SPDX-License-Identifier: Apache-2.0

// Command pno runs programs with their sockets offloaded: attached to the
// machine's host agent (run), or to a private simulated DPU (sim); measures
// them (bench), and predicts from that what a card could do (plan).
//
// The main goroutine stays on the main thread: `pno sim` starts its program
// from there, so that the kernel ends the program when pno itself is killed.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/spf13/cobra"

	"pno/internal/buildinfo"
)

func init() { runtime.LockOSThread() }

func main() { os.Exit(Main()) }

// Main is main without the exit, for the tests.
func Main() int {
	root := newRootCmd()
	cmd, err := root.ExecuteContextC(context.Background())
	var exit *statusError // and not what a tool exited with that a benchmark ran
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		if text := err.Error(); text != "" {
			fmt.Fprintf(os.Stderr, "%s: %s\n", cmd.CommandPath(), text)
		}
		return exit.code
	default:
		fmt.Fprintf(os.Stderr, "%s: %v\n", cmd.CommandPath(), err)
		return 1
	}
}

func newRootCmd() *cobra.Command {
	root := &cobra.Command{
		Use:           "pno",
		Short:         "Run programs with their sockets offloaded to a DPU",
		Version:       buildinfo.Long(),
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetVersionTemplate("{{.Name}} {{.Version}}\n")
	root.AddCommand(newRunCmd(), newSimCmd(), newBenchCmd(), newPlanCmd())
	return root
}

// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"pno/internal/buildinfo"
)

// Where the daemons serve unless told otherwise.
const (
	DefaultDPU  = "unix:///run/pno/dpud-admin.sock"
	DefaultHost = "unix:///run/pno/hostd-admin.sock"

	// EnvDPU and EnvHost override them.
	EnvDPU  = "PNO_ADMIN_DPU"
	EnvHost = "PNO_ADMIN_HOST"
)

// noAddr as an address leaves a daemon out.
const noAddr = "none"

// Output formats.
const (
	formatTable = "table"
	formatWide  = "wide"
	formatJSON  = "json"
	formatYAML  = "yaml"
)

var formats = []string{formatTable, formatWide, formatJSON, formatYAML}

const rootHelp = `offloadctl shows what the socket offload does: it asks dpud (the DPU's side)
and hostd (the host's side) over their admin sockets. A daemon at its default
address that does not run is left out; one whose address was given must answer.

Environment:
  PNO_ADMIN_DPU    address of dpud, unless --addr is given
  PNO_ADMIN_HOST   address of hostd, unless --host-addr is given

Exit codes:
  0  done
  1  a daemon answered with an error, or the output could not be written
  2  the command line makes no sense
  3  no daemon answers
  4  status: a daemon answers and reports a problem

With -o json and -o yaml, errors are printed in that form too, on standard
output: {"error": {"code": …, "message": …, "exit_code": …}}.`

func (a *App) newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:           "offloadctl",
		Short:         "Show what the socket offload does",
		Long:          rootHelp,
		Version:       buildinfo.Long(),
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	f := root.PersistentFlags()
	f.StringVarP(&a.output, "output", "o", formatTable, "form of the output: "+strings.Join(formats, "|"))
	f.StringVar(&a.dpuAddr, "addr", "", "address of dpud, unix:///PATH, or none (default "+DefaultDPU+")")
	f.StringVar(&a.hostAddr, "host-addr", "", "address of hostd, unix:///PATH, or none (default "+DefaultHost+")")
	f.DurationVar(&a.timeout, "timeout", 5*time.Second, "longest wait for an answer")
	complete(root, "output", formats...)
	root.AddCommand(a.newStatus(), a.newStats(), a.newSockets(), a.newRings(), a.newPolicy(), a.newVersion(), a.newMan())
	return root
}

// checkGlobals refuses what the flag parser lets through.
func (a *App) checkGlobals() error {
	if !slices.Contains(formats, a.output) {
		return fmt.Errorf("unknown output form %q; there are %s", a.output, strings.Join(formats, ", "))
	}
	if a.timeout <= 0 {
		return fmt.Errorf("--timeout %v: want more than 0", a.timeout)
	}
	return nil
}

// formatIn looks for the output form in a command line that could not be
// parsed, so that the error can have it.
func formatIn(args []string) string {
	form := formatTable
	for i, arg := range args {
		switch {
		case (arg == "-o" || arg == "--output") && i+1 < len(args):
			form = args[i+1]
		case strings.HasPrefix(arg, "--output="):
			form = strings.TrimPrefix(arg, "--output=")
		case strings.HasPrefix(arg, "-o") && !strings.HasPrefix(arg, "--"):
			form = strings.TrimPrefix(strings.TrimPrefix(arg, "-o"), "=")
		}
	}
	return form
}

// complete offers fixed values for a flag to the shell.
func complete(cmd *cobra.Command, flag string, values ...string) {
	err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
	if err != nil {
		panic(err) // the flag's name is wrong: a mistake in this package
	}
}

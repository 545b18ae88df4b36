// SPDX-License-Identifier: Apache-2.0

// Command cryptod is a worker of the crypto cluster: it holds private keys and
// uses them for the proxies that its access rules name. SIGHUP reads keys, rules
// and certificates again, which also happens by itself; SIGTERM and SIGINT
// answer what is open, then stop it. The same program is the key agent of a
// proxy host (cryptod agent), keeps the key store and the audit log (cryptod keys,
// cryptod audit), and tells how the workers are (cryptod workers).
//
// Exit codes: 0 after an orderly stop, 1 if something failed, 2 if the command
// line, the configuration or the access rules are wrong.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"pno/internal/buildinfo"
)

const (
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	code := exitUsage
	if err := newRootCmd(&code).Execute(); err != nil {
		fmt.Fprintf(os.Stderr, "cryptod: %v\n", err)
		os.Exit(code)
	}
}

// newRootCmd sets code, that of an error, once it is no longer the user's words
// that are wrong.
func newRootCmd(code *int) *cobra.Command {
	var file string
	var check bool
	cmd := &cobra.Command{
		Use:           "cryptod",
		Short:         "Worker of the crypto cluster: private keys, and nobody sees them",
		Version:       buildinfo.Long(),
		Args:          cobra.NoArgs,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			set, err := loadSettings(file)
			if err != nil || check {
				return err
			}
			*code = exitFailed
			return runWorker(cmd.Context(), set)
		},
	}
	cmd.SetVersionTemplate("{{.Name}} {{.Version}}\n")
	cmd.Flags().StringVar(&file, "config", "/etc/pno/cryptod.yaml", "configuration `file`")
	cmd.Flags().BoolVar(&check, "check", false, "check the configuration and the access rules, and exit")
	cmd.AddCommand(newAgentCmd(code), newKeysCmd(code), newAuditCmd(code), newWorkersCmd(code))
	return cmd
}

// writeJSON is the form of output that programs read.
func writeJSON(out io.Writer, v any) error {
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

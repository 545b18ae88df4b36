// SPDX-License-Identifier: Apache-2.0

// Command cryptod is a worker of the crypto cluster: it holds private keys and
// uses them for the proxies that its access rules name. SIGHUP reads keys, rules
// and certificates again, which also happens by itself; SIGTERM and SIGINT
// answer what is open, then stop it. The same program is the key agent of a
// proxy host (cryptod agent), and keeps the key store and the audit log
// (cryptod keys, cryptod audit).
package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"pno/internal/buildinfo"
)

func main() {
	if err := newRootCmd().Execute(); err != nil {
		fmt.Fprintf(os.Stderr, "cryptod: %v\n", err)
		os.Exit(1)
	}
}

func newRootCmd() *cobra.Command {
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
			return runWorker(cmd.Context(), set)
		},
	}
	cmd.SetVersionTemplate("{{.Name}} {{.Version}}\n")
	cmd.Flags().StringVar(&file, "config", "/etc/pno/cryptod.yaml", "configuration `file`")
	cmd.Flags().BoolVar(&check, "check", false, "check the configuration and the access rules, and exit")
	cmd.AddCommand(newAgentCmd(), newKeysCmd(), newAuditCmd())
	return cmd
}

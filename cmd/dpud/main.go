// SPDX-License-Identifier: Apache-2.0

// Command dpud is the DPU's side of the socket offload: it owns a network port,
// runs the TCP stacks, and serves host processes through the host agent.
// SIGTERM and SIGINT stop it, which resets the offloaded connections.
//
// Exit codes: 0 after an orderly stop, 1 if it could not run, 2 if the command
// line or the configuration is wrong.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"pno/internal/buildinfo"
	"pno/internal/config"
)

const (
	exitFailed = 1
	exitUsage  = 2
)

func main() { os.Exit(command(os.Args[1:], os.Stdout, os.Stderr)) }

// command runs a command line and returns the exit code.
func command(args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	code := exitUsage
	cmd := &cobra.Command{
		Use:           "dpud",
		Short:         "The DPU's side of the socket offload",
		Version:       buildinfo.Long(),
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	cmd.SetVersionTemplate("{{.Name}} {{.Version}}\n")
	cmd.SetArgs(args)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	file := cmd.Flags().String("config", defaultConfig, "configuration `file`")
	check := cmd.Flags().Bool("check", false, "check the configuration, and exit")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		set, err := load(*file)
		if err != nil {
			return err
		}
		if *check {
			fmt.Fprintf(stdout, "%s: good\n", *file)
			return nil
		}
		code = exitFailed
		return run(cmd.Context(), set, stderr)
	}
	if err := cmd.ExecuteContext(ctx); err != nil {
		fmt.Fprintf(stderr, "dpud: %v\n", err)
		return code
	}
	return 0
}

// load reads the configuration. There is no running without one: nothing tells
// which port to take, and under which address.
func load(file string) (settings, error) {
	set := defaultSettings()
	err := config.Load(file, &set)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: dpud must be told its link and addresses; deploy/dpud.yaml is a sample", err)
	}
	return set, err
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"pno/crypto/agent"
	"pno/internal/config"
	"pno/internal/daemon"
)

// agentSettings is the file of `cryptod agent`; deploy/agent.yaml explains it.
type agentSettings struct {
	Agent      agent.Settings     `yaml:"agent"`
	LockMemory string             `yaml:"lock_memory"`
	Log        daemon.LogSettings `yaml:"log"`
}

func newAgentCmd() *cobra.Command {
	var file string
	var check bool
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Key agent of a proxy host: what the OpenSSL provider talks to",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			set, err := loadAgent(file)
			if err != nil || check {
				return err
			}
			return runAgent(cmd.Context(), set)
		},
	}
	cmd.Flags().StringVar(&file, "config", "/etc/pno/agent.yaml", "configuration `file`")
	cmd.Flags().BoolVar(&check, "check", false, "check the configuration, and exit")
	return cmd
}

func loadAgent(file string) (agentSettings, error) {
	set := agentSettings{LockMemory: "try", Log: daemon.DefaultLog()}
	if err := config.Load(file, &set); err != nil {
		return set, err
	}
	if len(set.Agent.Listen) == 0 {
		return set, errors.New(file + " has no agent section")
	}
	return set, nil
}

func runAgent(ctx context.Context, set agentSettings) error {
	calmGC()
	log := daemon.NewLog(os.Stderr, set.Log)
	if err := holdMemory(set.LockMemory, log); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	a, err := agent.Open(&set.Agent, log)
	if err != nil {
		return err
	}
	go func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for a.Identity != nil {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				if changed, err := a.Identity.Reload(); err != nil {
					log.Error("certificate not reloaded, the former stays in force", "reason", err)
				} else if changed {
					log.Info("certificate reloaded", "identity", a.Identity.URI())
				}
			}
		}
	}()
	daemon.Ready(log)
	err = a.Serve(ctx)
	daemon.Stopping(log)
	return errors.Join(err, a.Close())
}

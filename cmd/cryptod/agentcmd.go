// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"

	"pno/crypto/agent"
	"pno/crypto/engine"
	"pno/crypto/engine/libcrypto"
	"pno/crypto/procs"
	"pno/internal/config"
	"pno/internal/daemon"
)

// agentSettings is the file of `cryptod agent`; deploy/agent.yaml explains it.
type agentSettings struct {
	Agent      agent.Settings     `yaml:"agent"`
	Metrics    string             `yaml:"metrics"`
	LockMemory string             `yaml:"lock_memory"`
	Log        daemon.LogSettings `yaml:"log"`
}

// Validate is called by the loader.
func (s *agentSettings) Validate() error {
	if err := checkLockMemory(s.LockMemory); err != nil {
		return err
	}
	return checkMetrics(s.Metrics)
}

func newAgentCmd(code *int) *cobra.Command {
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
			*code = exitFailed
			return runAgent(cmd.Context(), set)
		},
	}
	cmd.Flags().StringVar(&file, "config", "/etc/pno/agent.yaml", "configuration `file`")
	cmd.Flags().BoolVar(&check, "check", false, "check the configuration, and exit")
	return cmd
}

func loadAgent(file string) (agentSettings, error) {
	set := agentSettings{Metrics: "127.0.0.1:9467", LockMemory: "try", Log: daemon.DefaultLog()}
	if err := config.Load(file, &set); err != nil {
		return set, err
	}
	if len(set.Agent.Listen) == 0 {
		return set, errors.New(file + " has no agent section")
	}
	return set, nil
}

// localEngine computes with sealed copies: the one that keeps keys in locked
// memory, where it is built in.
func localEngine() agent.Opener {
	if !libcrypto.Available {
		return agent.GoEngine
	}
	return func(sink engine.Sink) (engine.Engine, error) { return libcrypto.New(libcrypto.Config{}, sink) }
}

func runAgent(ctx context.Context, set agentSettings) error {
	daemon.CalmGC(gcPercent)
	log := daemon.NewLog(os.Stderr, set.Log)
	if err := holdMemory(set.LockMemory, log); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	a, err := agent.Open(&set.Agent, localEngine(), log)
	if err != nil {
		return err
	}
	if err := libcrypto.Unlocked(); err != nil && set.Agent.Local != nil {
		log.Warn("sealed copies are not as safe as they could be", "reason", err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if set.Metrics != "none" {
		r := prometheus.NewRegistry()
		r.MustRegister(a.Metrics(), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
		m, err := serveMetrics(set.Metrics, r, cancel)
		if err != nil {
			return errors.Join(err, a.Close())
		}
		defer func() { _ = m.Close() }() // the agent has ended
	}
	go daemon.Watchdog(ctx, log, func() bool { return true })
	go procs.Fit(ctx, log)
	daemon.Ready(log)
	err = a.Run(ctx)
	daemon.Stopping(log)
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		err = errors.Join(err, cause)
	}
	return errors.Join(err, a.Close())
}

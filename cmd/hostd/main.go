// SPDX-License-Identifier: Apache-2.0

// Command hostd is the host agent: processes attach to it to have their
// sockets offloaded, and it speaks with the DPU on their behalf. SIGHUP reads
// the policy again; SIGTERM and SIGINT stop it, which leaves running sessions
// alone.
//
// Exit codes: 0 after an orderly stop, 1 if it could not run, 2 if the command
// line, the configuration or the policy is wrong.
package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"pno/crypto/agent"
	"pno/crypto/secmem"
	"pno/host"
	"pno/host/policy"
	"pno/internal/admin"
	"pno/internal/buildinfo"
	"pno/internal/config"
	"pno/internal/daemon"
)

const (
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	code := exitUsage
	if err := newRootCmd(&code).Execute(); err != nil {
		fmt.Fprintf(os.Stderr, "hostd: %v\n", err)
		os.Exit(code)
	}
}

const defaultConfig = "/etc/pno/hostd.yaml"

// newRootCmd sets code, that of an error, once the settings are good.
func newRootCmd(code *int) *cobra.Command {
	var file, listen, dpu, policyFile string
	var check bool
	cmd := &cobra.Command{
		Use:           "hostd",
		Short:         "Host agent: attaches processes to the DPU",
		Version:       buildinfo.Long(),
		Args:          cobra.NoArgs,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			set, err := load(file, cmd.Flags().Changed("config"))
			if err != nil {
				return err
			}
			for flag, to := range map[string]*string{"listen": &set.Listen, "dpu": &set.DPU, "policy": &set.Policy} {
				if cmd.Flags().Changed(flag) {
					*to = cmd.Flag(flag).Value.String()
				}
			}
			if err := set.Validate(); err != nil {
				return err
			}
			pol, err := loadPolicy(set.Policy)
			if err != nil {
				return err
			}
			if check {
				fmt.Fprintln(cmd.OutOrStdout(), "hostd: configuration and policy are good")
				return nil
			}
			*code = exitFailed
			return run(cmd.Context(), set, pol)
		},
	}
	cmd.SetVersionTemplate("{{.Name}} {{.Version}}\n")
	f := cmd.Flags()
	f.StringVar(&file, "config", defaultConfig, "configuration `file`; the default one may be missing")
	f.StringVar(&listen, "listen", "", "attach socket, instead of the configuration's")
	f.StringVar(&dpu, "dpu", "", "control socket of dpud, instead of the configuration's")
	f.StringVar(&policyFile, "policy", "", "policy `file`, instead of the configuration's")
	f.BoolVar(&check, "check", false, "check the configuration and the policy, and exit")
	return cmd
}

// load reads the configuration. Only the default file may be missing.
func load(file string, asked bool) (settings, error) {
	set := defaultSettings()
	err := config.Load(file, &set)
	if !asked && errors.Is(err, fs.ErrNotExist) {
		return set, nil
	}
	return set, err
}

func loadPolicy(file string) (*policy.Policy, error) {
	if file == "" {
		return policy.Default(), nil
	}
	return policy.Load(file)
}

func run(ctx context.Context, set settings, pol *policy.Policy) (err error) {
	log := daemon.NewLog(os.Stderr, set.Log)
	spin := max(1, uint32(set.Session.Spin.Std())) // 0 would mean the default
	stopped, stop := signal.NotifyContext(ctx, unix.SIGINT, unix.SIGTERM)
	defer stop()
	srv, err := host.New(host.Config{
		Listen: set.Listen, SocketMode: os.FileMode(set.SocketMode), DPU: set.DPU, DPUWait: set.DPUWait.Std(),
		Policy: pol, Log: log, State: set.state(), Layout: set.Session.layout(), SpinNanos: spin,
		MaxSessions: set.Limits.Sessions, MaxPerUser: set.Limits.PerUser, RunPolicies: set.RunPolicies,
	})
	if err != nil {
		return err
	}
	for _, path := range []string{set.Listen, set.Admin} {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return fmt.Errorf("make the directory of a socket: %w", err)
		}
	}
	opts := admin.Options{Log: log}
	var keys *agent.Running
	if set.Agent != nil {
		if keys, err = openAgent(set.Agent, log); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, keys.Close()) }()
		opts.Collectors = []prometheus.Collector{keys.Metrics()}
		opts.Health = map[string]func() bool{agentHealth: keys.Healthy}
	}
	ctx, cancel := context.WithCancelCause(stopped)
	defer cancel(nil)
	part := func(name string, serve func(context.Context) error) chan struct{} {
		done := make(chan struct{})
		go func() {
			defer close(done)
			if err := serve(ctx); err != nil {
				cancel(fmt.Errorf("%s: %w", name, err))
			}
		}()
		return done
	}
	if set.Metrics != "none" {
		opts.Metrics = set.Metrics
	}
	adminDone := part("admin", func(ctx context.Context) error {
		return admin.ServeHost(ctx, set.Admin, srv, opts)
	})
	hostDone := part("attach", srv.Serve)
	if keys != nil {
		agentDone := part("key agent", keys.Run)
		defer func() { <-agentDone }()
	}
	go reloadOnHup(ctx, srv, set.Policy, log)
	go tellSystemd(ctx, srv, log)

	<-ctx.Done()
	daemon.Stopping(log)
	<-hostDone
	<-adminDone
	if stopped.Err() == nil {
		return context.Cause(ctx)
	}
	log.Info("hostd stopped")
	return nil
}

// agentHealth is the service name that the health of the key agent goes by.
const agentHealth = "pno.crypto.agent"

// openAgent makes the key agent that runs inside hostd. It may hold keys, so
// the process shows its memory to nobody; it is not locked as a whole, for most
// of it is shared with other processes.
func openAgent(set *agent.Settings, log *slog.Logger) (*agent.Running, error) {
	if err := secmem.HoldProcess(false); err != nil {
		return nil, err
	}
	return agent.Open(set, agent.GoEngine, log)
}

// tellSystemd says READY once processes can attach, and feeds the watchdog as
// long as the server's lock, which every part of it needs, can be had.
func tellSystemd(ctx context.Context, srv *host.Server, log *slog.Logger) {
	select {
	case <-srv.Ready():
	case <-ctx.Done():
		return
	}
	daemon.Ready(log)
	daemon.Watchdog(ctx, log, func() bool { srv.Policy(); return true })
}

// reloadOnHup puts the policy file in force again, for new processes. A file
// with a mistake changes nothing.
func reloadOnHup(ctx context.Context, srv *host.Server, file string, log *slog.Logger) {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	for {
		select {
		case <-ctx.Done():
			return
		case <-hup:
		}
		pol, err := loadPolicy(file)
		if err != nil {
			srv.PolicyFailed()
			log.Error("policy not reloaded, the former one stays in force", "reason", err)
			continue
		}
		srv.SetPolicy(pol)
		log.Info("policy reloaded", "source", pol.Source(), "rules", len(pol.Rules))
	}
}

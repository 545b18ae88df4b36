// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"pno/host/policy"
	"pno/internal/target"
	"pno/offload"
	"pno/sim/edge"
	"pno/sim/pcie"
	"pno/sim/topology"
	"pno/sim/wire"
)

// settleTime is how long the host agent has to notice that the last process
// has gone, before the statistics are written.
const settleTime = 2 * time.Second

const simLong = `Bring up a private simulated DPU and host agent, run CMD with its sockets
offloaded, and take all down when CMD exits.

The DPU has the address 198.18.0.2/15 (and 2001:2::2/48) on a virtual wire. At
the wire's far end, 198.18.0.1, an edge connects this machine's loopback with it.
Nothing of this needs root, and any number can run at once.

CMD must stay in the foreground: when it exits, what it left behind is ended.
SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2 and SIGQUIT are passed on to it (a
Ctrl-C reaches it from the terminal), and it gets SIGTERM if pno is killed. CMD
finds the simulation by PNO_HOSTD, and offloadctl by PNO_ADMIN_DPU and
PNO_ADMIN_HOST, which are set in CMD's environment and shown by -v.

The exit status is CMD's, 128+N if signal N killed it, 125 if pno itself failed,
126 if CMD cannot be run and 127 if it is not found.`

const simExample = `  pno sim --publish 127.0.0.1:8080=198.18.0.2:80 -- nginx -g 'daemon off;'
  pno sim --offload-loopback --stats out.json -- ./run-my-tests
  pno sim --forward 198.18.0.100:9000=127.0.0.1:9000 --loss 1% --delay 20ms -- haproxy -f h.cfg`

// simFlags are the options of `pno sim` as they were typed.
type simFlags struct {
	publish, forward, address []string
	loopback                  bool
	pcie, stats, policy       string
	shards                    int
	loss, reorder             percent
	delay                     time.Duration
	seed                      uint64
	verbose                   bool
}

func newSimCmd() *cobra.Command {
	var f simFlags
	c := &cobra.Command{
		Use:     "sim [flags] -- CMD [ARG…]",
		Short:   "Run a program on a private simulated DPU",
		Long:    simLong,
		Example: simExample,
		RunE:    func(_ *cobra.Command, args []string) error { return runSim(&f, args) },
	}
	c.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		return &statusError{exitOwn, fmt.Errorf("%w (see pno sim --help)", err)}
	})
	fl := c.Flags()
	fl.SetInterspersed(false) // what follows CMD is CMD's
	fl.StringArrayVar(&f.publish, "publish", nil, "let loopback clients connect: OUTSIDE:PORT=INSIDE:PORT (repeatable)")
	fl.StringArrayVar(&f.forward, "forward", nil, "let CMD connect to a loopback service: INSIDE:PORT=OUTSIDE:PORT (repeatable)")
	fl.BoolVar(&f.loopback, "offload-loopback", false, "offload 127.0.0.0/8 and ::1 too, to the DPU's own loopback")
	fl.StringVar(&f.pcie, "pcie", "zero", "PCIe model: "+pcie.Names())
	fl.StringVar(&f.stats, "stats", "", "write statistics to this file at exit, as JSON")
	fl.StringVar(&f.policy, "policy", "", "policy file (default: offload everything but loopback)")
	fl.IntVar(&f.shards, "shards", 1, "shards of the DPU")
	fl.Var(&f.loss, "loss", "packets lost on the wire, each way, in percent")
	fl.Var(&f.reorder, "reorder", "packets delivered late, each way, in percent")
	fl.DurationVar(&f.delay, "delay", 0, "delay of the wire, each way")
	fl.Uint64Var(&f.seed, "seed", 1, "seed of loss and reordering")
	fl.StringArrayVar(&f.address, "address", nil, "address of the DPU with prefix length, within 198.18.0.0/15 or 2001:2::/48 (repeatable)")
	fl.BoolVarP(&f.verbose, "verbose", "v", false, "say what is set up, and log to standard error")
	return c
}

// percent is a chance from 0 to 1, typed as 0 to 100 with or without a sign.
type percent float64

func (p *percent) String() string { return fmt.Sprint(float64(*p)*100, "%") }
func (*percent) Type() string     { return "percent" }
func (p *percent) Set(s string) error {
	v, err := strconv.ParseFloat(strings.TrimSuffix(s, "%"), 64)
	if err != nil || !(v >= 0 && v <= 100) {
		return fmt.Errorf("%q is not a percentage from 0 to 100", s)
	}
	*p = percent(v / 100)
	return nil
}

func runSim(f *simFlags, args []string) error {
	if len(args) == 0 {
		return &statusError{exitOwn, fmt.Errorf("no program given: pno sim [flags] -- CMD [ARG…]")}
	}
	own := func(err error) error { return &statusError{exitOwn, err} }
	cfg, err := f.config()
	if err != nil {
		return own(err)
	}
	library, err := findLibrary()
	if err != nil {
		return own(err)
	}
	c, err := newChild(args)
	if err != nil {
		return err
	}
	var unfit *target.Error
	if err := target.Check(c.path); err != nil {
		// Not an error: it may start others that can be offloaded.
		fmt.Fprintf(os.Stderr, "pno sim: warning: not offloaded itself: %v\n", err)
		errors.As(err, &unfit)
	}
	out, err := f.openStats()
	if err != nil {
		return own(err)
	}
	s, err := topology.Start(cfg)
	if err != nil {
		return own(err)
	}
	defer s.Stop()
	env := append(s.Env(), "LD_PRELOAD="+preload(library))
	if f.verbose {
		f.explain(s, env)
	}
	if err := c.start(mergeEnv(os.Environ(), env)); err != nil {
		return err
	}
	if unfit != nil && unfit.Reason != "" {
		s.NoteBypass(c.pid, filepath.Base(c.path), unfit.Reason)
	}
	status, err := c.wait()
	if err != nil {
		return own(err)
	}
	if n := endOrphans(); n > 0 && f.verbose {
		fmt.Fprintf(os.Stderr, "pno sim: ended %d processes that the program left behind\n", n)
	}
	s.Settle(settleTime)
	s.Stop()
	if err := writeStats(out, s.Report()); err != nil {
		return own(err)
	}
	if status != 0 {
		return &statusError{code: status}
	}
	return nil
}

// config checks everything that was typed.
func (f *simFlags) config() (topology.Config, error) {
	cfg := topology.Config{
		Shards: f.shards, Seed: f.seed, Policy: topology.Policy(),
		Faults: wire.Faults{Loss: float64(f.loss), Reorder: float64(f.reorder), Delay: f.delay},
	}
	if f.shards < 1 || f.shards > offload.MaxShards {
		return cfg, fmt.Errorf("--shards %d: want 1 to %d", f.shards, offload.MaxShards)
	}
	if f.delay < 0 {
		return cfg, fmt.Errorf("--delay %v: want 0 or more", f.delay)
	}
	for _, list := range []struct {
		flag  string
		typed []string
		parse func(string) (edge.Mapping, error)
		into  *[]edge.Mapping
	}{
		{"--publish", f.publish, topology.ParsePublish, &cfg.Publish},
		{"--forward", f.forward, topology.ParseForward, &cfg.Forward},
	} {
		for _, s := range list.typed {
			m, err := list.parse(s)
			if err != nil {
				return cfg, fmt.Errorf("%s: %w", list.flag, err)
			}
			*list.into = append(*list.into, m)
		}
	}
	for _, s := range f.address {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return cfg, fmt.Errorf("--address: %q is not ADDRESS/LENGTH: %w", s, err)
		}
		cfg.Addresses = append(cfg.Addresses, p)
	}
	var err error
	if cfg.PCIe, err = pcie.ByName(f.pcie); err != nil {
		return cfg, fmt.Errorf("--pcie: %w", err)
	}
	if f.policy != "" {
		if cfg.Policy, err = policy.Load(f.policy); err != nil {
			return cfg, err
		}
	}
	if f.loopback {
		cfg.Policy.OffloadLoopback = true
	}
	if f.verbose {
		cfg.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	return cfg, nil
}

// explain prints what a user needs to reach the simulation.
func (f *simFlags) explain(s *topology.Sim, env []string) {
	for i, outside := range s.Published() {
		_, inside, _ := strings.Cut(f.publish[i], "=")
		fmt.Fprintf(os.Stderr, "pno sim: published %s as %v\n", inside, outside)
	}
	for _, e := range env {
		fmt.Fprintf(os.Stderr, "pno sim: %s\n", e)
	}
}

// openStats opens the statistics file early, so that a wrong name is told
// before the program runs and not after.
func (f *simFlags) openStats() (*os.File, error) {
	if f.stats == "" {
		return nil, nil
	}
	out, err := os.Create(filepath.Clean(f.stats))
	if err != nil {
		return nil, fmt.Errorf("--stats: %w", err)
	}
	return out, nil
}

func writeStats(out *os.File, r topology.Report) error {
	if out == nil {
		return nil
	}
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	err := e.Encode(r)
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("write statistics: %w", err)
	}
	return nil
}

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"pno/bench"
)

// benchmark runs one of pno's, shortly: that it works, not what it measures. CPU
// time holds on a busy machine, too, so that much of it is judged.
func benchmark(t *testing.T, into any, args ...string) error {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("benchmarks need root, for their network namespaces")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, binary(t, "pno"), append([]string{"bench"}, append(args, "-o", "json")...)...)
	c.Cancel = func() error { return c.Process.Signal(syscall.SIGTERM) } // it takes its processes with it
	c.WaitDelay = 20 * time.Second
	said, err := c.Output()
	if err != nil {
		if e, ok := errors.AsType[*exec.ExitError](err); ok {
			return fmt.Errorf("%v: %w\n%s", c.Args, err, e.Stderr)
		}
		return err
	}
	if err := json.Unmarshal(said, into); err != nil {
		return fmt.Errorf("%v: %w\n%s", c.Args, err, said)
	}
	return nil
}

// plausible runs a measurement again when it does not come about, or when what
// it says cannot be: what else runs on the machine spoils one of 300 ms, but
// hardly three of them, of which each takes longer.
func plausible(t *testing.T, measure func(d time.Duration) error) {
	t.Helper()
	var err error
	for d := 300 * time.Millisecond; d < 8*time.Second; d *= 4 {
		if err = measure(d); err == nil {
			return
		}
		t.Log(err)
	}
	t.Error(err)
}

// TestBenchHandshake holds the proxy's CPU to what a longer run on an idle machine
// shows (docs/crypto.md: 1.72 to 1.89 with a local key to 1 with the cluster; 1.67 is
// asked for), less what neighbours in the caches take.
func TestBenchHandshake(t *testing.T) {
	plausible(t, func(d time.Duration) error {
		var r bench.HandshakeComparison
		if err := benchmark(t, &r, "handshake", "--keys", "rsa2048", "--tls", "1.3", "--duration", (2 * d).String(), "--pairs", "1"); err != nil {
			return err
		}
		row := r.Rows[0]
		t.Logf("proxy CPU a handshake: %.0f µs with the local key, %.0f µs with the cluster (agent %.0f µs): ratio %.2f",
			row.Local.ProxyCPU, row.Cluster.ProxyCPU, row.Cluster.AgentCPU, row.Ratio)
		if row.Local.Failed+row.Cluster.Failed > 0 {
			t.Errorf("failed handshakes: %+v", row)
		}
		if row.Ratio < 1.55 || row.Cluster.WorkerCPU < 50 {
			return fmt.Errorf("%+v", row)
		}
		return nil
	})
}

// TestBenchCryptoRPC does likewise with the way to the worker (docs/crypto.md: 5 µs
// at 32 in flight).
func TestBenchCryptoRPC(t *testing.T) {
	var r bench.RPCComparison
	plausible(t, func(d time.Duration) error {
		r = bench.RPCComparison{}
		if err := benchmark(t, &r, "cryptorpc", "--inflight", "1,32", "--cards", "1,2", "--duration", d.String(), "--pairs", "1"); err != nil {
			return err
		}
		if len(r.RPC) != 2 || len(r.Latency) != 4 || len(r.Cards) != 2 {
			t.Fatalf("%+v", r)
		}
		t.Logf("CPU an operation: %.1f µs at 1, %.1f µs at 32 in flight; added p50 %.0f µs; %.0f and %.0f operations/s of simulated cards",
			r.RPC[0].CPU, r.RPC[1].CPU, r.Latency[0].P50, r.Cards[0].Ops, r.Cards[1].Ops)
		one, many := r.RPC[0].CPU, r.RPC[1].CPU
		// A machine that is slowed down is so for both: one at a time costs six times as much.
		slow := many <= 10 && one >= 5*many
		if many <= 0 || many > 7 && !slow || one > 60 || one < many {
			return fmt.Errorf("%+v", r)
		}
		return nil
	})
	for _, c := range r.Cards { // a card is not faster than it is said to be
		if c.Ops <= 0 || c.Efficient > 1.1 {
			t.Errorf("%+v", c)
		}
	}
}

// TestBenchInterrupted ends one in the middle: it says so, and leaves nothing.
func TestBenchInterrupted(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("benchmarks need root, for their network namespaces")
	}
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGHUP} {
		tmp := t.TempDir()
		var said bytes.Buffer
		c := exec.CommandContext(t.Context(), binary(t, "pno"), "bench", "nginx", "--duration", "2m")
		c.Env, c.Stderr = append(os.Environ(), "TMPDIR="+tmp), &said
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		namespaces := func() []string {
			list, _ := filepath.Glob(fmt.Sprintf("/run/netns/pnob%d-*", c.Process.Pid))
			return list
		}
		for end := time.Now().Add(20 * time.Second); len(namespaces()) < 5 && time.Now().Before(end); {
			time.Sleep(10 * time.Millisecond)
		}
		if len(namespaces()) < 5 {
			t.Errorf("after 20 s it has only the namespaces %v", namespaces())
		}
		_ = c.Process.Signal(sig)
		_ = c.Wait()
		if code := c.ProcessState.ExitCode(); code != 130 || said.String() != "pno bench nginx: interrupted\n" {
			t.Errorf("%v: exit status %d, %q", sig, code, said.String())
		}
		if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 || len(namespaces()) > 0 {
			t.Errorf("%v: files %v and namespaces %v are left, %v", sig, left, namespaces(), err)
		}
	}
}

// TestBenchCompares runs each comparison for a moment.
func TestBenchCompares(t *testing.T) {
	for _, args := range [][]string{
		{"nginx"}, {"haproxy"}, {"redis"}, {"conns"}, {"bulk"}, {"bulk", "--sendfile"}, {"splice"},
	} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			plausible(t, func(d time.Duration) error {
				var c bench.Comparison
				if err := benchmark(t, &c, append(args, "--duration", d.String(), "--pairs", "1")...); err != nil {
					return err
				}
				t.Logf("host CPU a request: kernel %.1f µs, offload %.1f µs", c.Kernel.HostCPU, c.Offload.HostCPU)
				if c.Kernel.Failed+c.Offload.Failed > 0 {
					t.Errorf("failed requests: %+v", c)
				}
				if c.Kernel.RPS <= 0 || c.Offload.RPS <= 0 || c.Kernel.HostCPU <= 0 || c.Offload.HostCPU <= 0 || c.Offload.DPUCPU <= 0 {
					return fmt.Errorf("%+v", c)
				}
				if args[0] != "bulk" {
					return nil
				}
				if c.OneShard == nil || c.OneShard.Gbits <= 0 || c.OneShard.Core < c.OneShard.Gbits/2 {
					return fmt.Errorf("one shard: %+v", c.OneShard)
				}
				t.Log(c.OneShard)
				return nil
			})
		})
	}
}

func TestBenchLatency(t *testing.T) {
	plausible(t, func(d time.Duration) error {
		var l bench.Latency
		if err := benchmark(t, &l, "latency", "--duration", d.String(), "--pairs", "1", "--conns", "4"); err != nil {
			return err
		}
		if len(l.Points) < 3 {
			return fmt.Errorf("%d points", len(l.Points))
		}
		for _, p := range l.Points {
			if p.Kernel.P50 <= 0 || p.Offload.P50 <= 0 || p.Rate <= 0 {
				return fmt.Errorf("%+v", p)
			}
		}
		return nil
	})
}

func TestBenchMemory(t *testing.T) {
	plausible(t, func(d time.Duration) error {
		var m bench.Memory
		if err := benchmark(t, &m, "memory", "--conns", "2000", "--duration", d.String()); err != nil {
			return err
		}
		if m.Offload.Conns != 2000 || m.Offload.DPUBytes <= 0 || m.Kernel.HostBytes <= 0 {
			return fmt.Errorf("%+v", m)
		}
		if m.Kernel.Answered != 2000 || m.Offload.Answered != 2000 || len(m.Targets) == 0 {
			t.Errorf("%d and %d of 2000 connections answered after they had been idle; targets %+v", m.Kernel.Answered, m.Offload.Answered, m.Targets)
		}
		return nil
	})
}

func TestBenchCeiling(t *testing.T) {
	for _, program := range []string{"nginx", "haproxy"} {
		plausible(t, func(d time.Duration) error {
			var c bench.Ceiling
			if err := benchmark(t, &c, "ceiling", "--program", program, "--duration", d.String(), "--pairs", "1"); err != nil {
				return err
			}
			t.Logf("%s: %.0f requests a second, %.2f µs of host CPU each", program, c.RPS, c.HostCPU)
			if c.RPS <= 0 || c.HostCPU <= 0 || c.Program != program {
				return fmt.Errorf("%+v", c)
			}
			return nil
		})
	}
}

// TestBenchShards holds two shards to what one costs, more loosely than a
// longer run on an idle machine shows it. What else the machine does can only
// make a run dearer, so the cheapest ones are compared; and one shard may have
// had the core that was left idle, so that two may cost what the control does.
func TestBenchShards(t *testing.T) {
	plausible(t, func(d time.Duration) error {
		var s bench.Shards
		if err := benchmark(t, &s, "shards", "--duration", d.String(), "--pairs", "3"); err != nil {
			return err
		}
		t.Logf("DPU CPU a request: %.2f µs with one shard, %.2f µs with two: %.2f of linear; waiting for locks %.3f and %.3f µs; two processes %.2f µs",
			s.One.DPUCPU, s.Two.DPUCPU, s.Ratio, s.One.Waited, s.Two.Waited, s.Apart.DPUCPU)
		for _, r := range []bench.ShardRun{s.One, s.Two, s.Apart} {
			if r.DPUCPU <= 0 || r.RPS <= 0 || len(r.Runs) != 3 {
				return fmt.Errorf("%+v", s)
			}
		}
		cheapest := func(r bench.ShardRun) float64 {
			return slices.MinFunc(r.Runs, func(a, b bench.ShardRun) int { return cmp.Compare(a.DPUCPU, b.DPUCPU) }).DPUCPU
		}
		one, two, apart := cheapest(s.One), cheapest(s.Two), cheapest(s.Apart)
		if max(one, apart) < 0.7*two {
			return fmt.Errorf("%.2f µs with one shard, %.2f µs with two, %.2f µs with two processes; locks %+v", one, two, apart, s.Two.Locks)
		}
		return nil
	})
}

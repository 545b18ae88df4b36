// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"
)

// OneShard is how much goes out through one shard. The DPU has a core for
// itself; nginx, the client and the client's kernel share the other one, so that
// whichever core is full first ends it. What the shard's core would carry if it
// were full is told apart.
type OneShard struct {
	Gbits  float64    `json:"gbit_s"`           // of bodies, measured
	DPUCPU float64    `json:"dpu_us_per_mib"`   // of the whole process
	Busy   float64    `json:"dpu_core_percent"` // of its core
	Core   float64    `json:"gbit_s_of_a_core"` // Gbits ÷ Busy
	Spread float64    `json:"gbit_s_spread"`
	Target Target     `json:"target"`
	Runs   []OneShard `json:"runs,omitempty"`
}

// String is a line for a table.
func (s *OneShard) String() string {
	return fmt.Sprintf("through one shard, as much as goes: %.2f Gbit/s (spread %.0f %%), %.0f µs of DPU CPU for 1 MiB, its core %.0f %% busy; a full core: %.2f Gbit/s",
		s.Gbits, 100*s.Spread, s.DPUCPU, s.Busy, s.Core)
}

// leastBulk is what one shard is to carry at least, in Gbit/s.
const leastBulk = 8

// measureOneShard loads the offloaded site with as much as goes.
func (s *subject) measureOneShard(ctx context.Context, o Options, conns int) (*OneShard, error) {
	if err := s.t.pinReceivers(proxyCore); err != nil {
		return nil, err
	}
	var runs []OneShard
	for i := range o.Pairs {
		r, err := s.drain(ctx, o.Duration, conns)
		if err != nil {
			return nil, fmt.Errorf("drain %s: %w\n%s", s.name, err, s.t.log(s.name))
		}
		o.Log("one shard, run %d: %.2f Gbit/s, %.0f µs of DPU CPU for 1 MiB, its core %.0f %% busy: %.2f Gbit/s of a core",
			i+1, r.Gbits, r.DPUCPU, r.Busy, r.Core)
		runs = append(runs, *r)
	}
	m := &OneShard{
		Gbits:  medianOf(runs, func(r OneShard) float64 { return r.Gbits }),
		DPUCPU: medianOf(runs, func(r OneShard) float64 { return r.DPUCPU }),
		Busy:   medianOf(runs, func(r OneShard) float64 { return r.Busy }),
		Core:   medianOf(runs, func(r OneShard) float64 { return r.Core }),
		Spread: spreadOf(runs, func(r OneShard) float64 { return r.Gbits }),
		Runs:   runs,
	}
	m.Target = Target{What: "bulk through one shard", Unit: "Gbit/s", Measured: m.Gbits, Least: leastBulk, Met: m.Gbits >= leastBulk}
	return m, nil
}

func (s *subject) drain(ctx context.Context, d time.Duration, conns int) (*OneShard, error) {
	if err := s.probe.start(); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "ip", "netns", "exec", s.clientNS, "taskset", "-c", proxyCore, filepath.Join(s.t.bin, "pno"), "bench", "drain",
		net.JoinHostPort(s.hostAddr, "80"), strconv.Itoa(conns), d.String())
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, stderr.Bytes())
	}
	_, _, dpu, err := s.probe.stop()
	if err != nil {
		return nil, err
	}
	var got Drained
	if err := json.Unmarshal(out, &got); err != nil {
		return nil, fmt.Errorf("the client said %q: %w", out, err)
	}
	if got.Bytes == 0 || got.Seconds <= 0 || dpu <= 0 {
		return nil, fmt.Errorf("the client received %d bytes in %.3f s, the DPU used %v of CPU: nothing to measure", got.Bytes, got.Seconds, dpu)
	}
	r := &OneShard{
		Gbits:  float64(got.Bytes) * 8 / got.Seconds / 1e9,
		DPUCPU: float64(dpu.Microseconds()) / (float64(got.Bytes) / (1 << 20)),
		Busy:   100 * dpu.Seconds() / got.Seconds,
	}
	r.Core = r.Gbits / (r.Busy / 100)
	return r, nil
}

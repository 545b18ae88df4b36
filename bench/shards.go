// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"pno/bench/lane"
)

// Shards compares two shards with one. Each has as many connections of its
// own, its own load, and one core for both; the wire is the virtual one.
type Shards struct {
	Benchmark string   `json:"benchmark"`
	Size      int      `json:"size"`
	Conns     int      `json:"conns"` // of each shard
	One       ShardRun `json:"one"`
	Two       ShardRun `json:"two"`
	Ratio     float64  `json:"ratio"` // DPU CPU per request, one ÷ two: 1 is linear
	Machine   Machine  `json:"machine"`
}

// ShardRun is one measured run, or the median of several, field by field.
type ShardRun struct {
	Shards int           `json:"shards"`
	RPS    float64       `json:"rps"`
	DPUCPU float64       `json:"dpu_cpu_us_per_req"`
	Waited float64       `json:"lock_wait_us_per_req"` // for locks, by all of the DPU and its load
	Allocs float64       `json:"allocs_per_req"`       // by the same
	Spread float64       `json:"dpu_cpu_spread"`
	Locks  []ShardedLock `json:"locks,omitempty"` // of the run with the median CPU time: its mutex profile
	Runs   []ShardRun    `json:"runs,omitempty"`
}

// ShardedLock is a line of the mutex profile.
type ShardedLock struct {
	Where  string  `json:"where"` // the function that held it
	Times  int64   `json:"times"`
	Waited float64 `json:"wait_us_per_req"`
}

// MeasureShards runs one and two shards in turn.
func MeasureShards(ctx context.Context, o Options, conns int) (*Shards, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	if conns < 1 {
		return nil, errors.New("there must be a connection")
	}
	s := &Shards{Benchmark: "shards", Size: lane.Size, Conns: conns, Machine: machine()}
	for i := range o.Pairs {
		for n, out := range []*ShardRun{&s.One, &s.Two} {
			r, err := shardRun(ctx, o, n+1, i, conns)
			if err != nil {
				return nil, err
			}
			o.Log("pair %d, %d shards: %.0f req/s, DPU %.2f µs a request, %.3f µs of waiting for locks", i+1, n+1, r.RPS, r.DPUCPU, r.Waited)
			out.Runs = append(out.Runs, r)
		}
	}
	for n, out := range []*ShardRun{&s.One, &s.Two} {
		*out = medianShards(n+1, out.Runs)
	}
	if s.Two.DPUCPU > 0 {
		s.Ratio = s.One.DPUCPU / s.Two.DPUCPU
	}
	return s, nil
}

// shardRun measures in a process of its own, on as many cores as shards, from
// core first on: one shard takes turns on all, so that a core which is slow or
// has other things to do counts for it as for two.
func shardRun(ctx context.Context, o Options, shards, first, conns int) (ShardRun, error) {
	args := []string{filepath.Join(o.Bin, "pno"), "bench", "lanes", strconv.Itoa(shards), strconv.Itoa(conns), o.Duration.String()}
	if cores := runtime.NumCPU(); cores >= shards {
		var list []string
		for i := range shards {
			list = append(list, strconv.Itoa((first+i)%cores))
		}
		args = append([]string{"taskset", "-c", strings.Join(list, ",")}, args...)
	}
	c := exec.CommandContext(ctx, args[0], args[1:]...)
	var said bytes.Buffer
	c.Stderr = &said
	out, err := c.Output()
	if err != nil {
		return ShardRun{}, fmt.Errorf("run %d shards: %w\n%s", shards, err, said.Bytes())
	}
	var l lane.Result
	if err := json.Unmarshal(out, &l); err != nil {
		return ShardRun{}, fmt.Errorf("read what %d shards did: %w", shards, err)
	}
	if l.Least == 0 {
		return ShardRun{}, fmt.Errorf("one of %d shards answered nothing", shards)
	}
	per := func(d time.Duration) float64 { return float64(d) / 1e3 / float64(l.Requests) }
	r := ShardRun{Shards: shards, RPS: float64(l.Requests) / l.Elapsed.Seconds(), DPUCPU: per(l.CPU),
		Allocs: float64(l.Allocs) / float64(l.Requests)}
	for _, one := range l.Locks {
		r.Waited += per(one.Wait)
		r.Locks = append(r.Locks, ShardedLock{one.Where, one.Times, per(one.Wait)})
	}
	return r, nil
}

func medianShards(shards int, runs []ShardRun) ShardRun {
	cpu := func(r ShardRun) float64 { return r.DPUCPU }
	m := ShardRun{
		Shards: shards, Runs: runs, DPUCPU: medianOf(runs, cpu), Spread: spreadOf(runs, cpu),
		RPS:    medianOf(runs, func(r ShardRun) float64 { return r.RPS }),
		Waited: medianOf(runs, func(r ShardRun) float64 { return r.Waited }),
		Allocs: medianOf(runs, func(r ShardRun) float64 { return r.Allocs }),
	}
	for _, r := range runs {
		if r.DPUCPU == m.DPUCPU {
			m.Locks = r.Locks
		}
	}
	return m
}

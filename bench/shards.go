// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"pno/bench/lane"
	"pno/dpu/shard"
)

// Shards compares two shards with one, and, as a control, with two systems of
// one shard each, which share nothing but the machine. Each shard has as many
// connections of its own, its own load, and one core for both, on which both
// stay; the wire is the virtual one.
type Shards struct {
	Benchmark string   `json:"benchmark"`
	Size      int      `json:"size"`
	Conns     int      `json:"conns"` // of each shard
	One       ShardRun `json:"one"`
	Two       ShardRun `json:"two"`
	Apart     ShardRun `json:"apart"` // two processes side by side

	// Of DPU CPU per request; 1 is linear. One shard beside an idle core may be
	// dearer than each of two, so the cheaper of both controls is what counts.
	Ratio   float64 `json:"ratio"`    // the lesser of the two below
	OfOne   float64 `json:"of_one"`   // one ÷ two
	OfApart float64 `json:"of_apart"` // apart ÷ two

	Machine Machine `json:"machine"`
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

// MeasureShards runs one, two, and two apart in turn. One takes turns on the
// cores that two have, so that a core which is slow or has other things to do
// counts for it as for two.
func MeasureShards(ctx context.Context, o Options, conns int) (*Shards, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	if conns < 1 {
		return nil, errors.New("there must be a connection")
	}
	s := &Shards{Benchmark: "shards", Size: lane.Size, Conns: conns, Machine: machine()}
	kinds := []struct {
		name string
		out  *ShardRun
		run  func(first int) (ShardRun, error)
	}{
		{"one shard", &s.One, func(first int) (ShardRun, error) { return shardRun(ctx, o, 1, first, conns) }},
		{"two shards", &s.Two, func(first int) (ShardRun, error) { return shardRun(ctx, o, 2, first, conns) }},
		{"two apart", &s.Apart, func(first int) (ShardRun, error) { return apart(ctx, o, first, conns) }},
	}
	for i := range o.Pairs {
		for _, k := range kinds {
			r, err := k.run(i)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", k.name, err)
			}
			o.Log("pair %d, %s: %.0f req/s, DPU %.2f µs a request, %.3f µs of waiting for locks", i+1, k.name, r.RPS, r.DPUCPU, r.Waited)
			k.out.Runs = append(k.out.Runs, r)
		}
	}
	for _, k := range kinds {
		*k.out = medianShards(k.out.Runs)
	}
	if s.Two.DPUCPU > 0 && s.Apart.DPUCPU > 0 {
		s.OfOne, s.OfApart = s.One.DPUCPU/s.Two.DPUCPU, s.Apart.DPUCPU/s.Two.DPUCPU
		s.Ratio = min(s.OfOne, s.OfApart)
	}
	return s, nil
}

// apart runs two processes of one shard each at the same time.
func apart(ctx context.Context, o Options, first, conns int) (ShardRun, error) {
	var runs [2]ShardRun
	var errs [2]error
	var wg sync.WaitGroup
	for i := range runs {
		wg.Go(func() { runs[i], errs[i] = shardRun(ctx, o, 1, first+i, conns) })
	}
	wg.Wait()
	a, b := runs[0], runs[1]
	if err := errors.Join(errs[:]...); err != nil {
		return a, err
	}
	r := ShardRun{Shards: 2, RPS: a.RPS + b.RPS, Locks: append(a.Locks, b.Locks...)}
	mean := func(of func(ShardRun) float64) float64 { return (of(a)*a.RPS + of(b)*b.RPS) / r.RPS }
	r.DPUCPU = mean(func(r ShardRun) float64 { return r.DPUCPU })
	r.Waited = mean(func(r ShardRun) float64 { return r.Waited })
	r.Allocs = mean(func(r ShardRun) float64 { return r.Allocs })
	return r, nil
}

// shardRun measures in a process of its own; the shards are on as many cores,
// from core first on, if there are so many.
func shardRun(ctx context.Context, o Options, shards, first, conns int) (ShardRun, error) {
	args := []string{"bench", "lanes", strconv.Itoa(shards), strconv.Itoa(conns), o.Duration.String()}
	cores, err := shard.Cores()
	if err != nil {
		return ShardRun{}, err
	}
	if len(cores) > 1 && len(cores) >= shards {
		for i := range shards {
			args = append(args, strconv.Itoa(cores[(first+i)%len(cores)]))
		}
	}
	c := exec.CommandContext(ctx, filepath.Join(o.Bin, "pno"), args...)
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

func medianShards(runs []ShardRun) ShardRun {
	cpu := func(r ShardRun) float64 { return r.DPUCPU }
	m := ShardRun{
		Shards: runs[0].Shards, Runs: runs, DPUCPU: medianOf(runs, cpu), Spread: spreadOf(runs, cpu),
		RPS:    medianOf(runs, func(r ShardRun) float64 { return r.RPS }),
		Waited: medianOf(runs, func(r ShardRun) float64 { return r.Waited }),
		Allocs: medianOf(runs, func(r ShardRun) float64 { return r.Allocs }),
	}
	m.Locks = slices.MinFunc(runs, func(a, b ShardRun) int {
		return cmp.Compare(math.Abs(a.DPUCPU-m.DPUCPU), math.Abs(b.DPUCPU-m.DPUCPU))
	}).Locks
	return m
}

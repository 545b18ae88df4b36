// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"encoding/csv"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

const redisPort = "6379"

// Redis compares a redis-server answering GET, one request at a time on each
// connection. redis-benchmark knows no rate: both run as fast as they can.
func Redis(ctx context.Context, o Options, size, conns int) (*Comparison, error) {
	return compare(ctx, o, scenario{
		Comparison: Comparison{Benchmark: "redis", Size: size, Conns: conns},
		serve: func(ctx context.Context, s *site) error {
			if err := s.serve(ctx, 6379, "redis-server", "--port", redisPort, "--bind", s.hostAddr,
				"--save", "", "--appendonly", "no", "--protected-mode", "no", "--dir", s.t.dir); err != nil {
				return err
			}
			// GET finds what SET leaves.
			return run("ip", "netns", "exec", s.clientNS, "redis-benchmark", "-h", s.hostAddr, "-d", strconv.Itoa(size),
				"-n", "1000", "-t", "set", "-q")
		},
		load: func(s *site) generator { return &redisBenchmark{site: s, size: size, conns: conns, guess: 20000} },
	})
}

// redisBenchmark runs for a number of requests, not for a time: the number is
// chosen from the rate of the run before.
type redisBenchmark struct {
	*site
	size, conns int
	guess       float64 // requests a second
}

func (*redisBenchmark) steady() bool { return false }

func (r *redisBenchmark) run(ctx context.Context, d time.Duration, _ int) (loadResult, error) {
	n := max(1000, int(r.guess*d.Seconds()))
	begun := time.Now()
	out, err := exec.CommandContext(ctx, "ip", "netns", "exec", r.clientNS, "taskset", "-c", otherCore,
		"redis-benchmark", "-h", r.hostAddr, "-d", strconv.Itoa(r.size), "-c", strconv.Itoa(r.conns),
		"-n", strconv.Itoa(n), "-P", "1", "-t", "get", "--csv", "--precision", "3").Output()
	if err != nil {
		return loadResult{}, fmt.Errorf("run redis-benchmark against %s: %w", r.hostAddr, err)
	}
	res, err := readRedisCSV(string(out))
	res.requests, res.elapsed = n, time.Since(begun)
	r.guess = float64(n) / res.elapsed.Seconds()
	return res, err
}

// readRedisCSV takes the latencies from redis-benchmark's table.
func readRedisCSV(text string) (r loadResult, err error) {
	rows, err := csv.NewReader(strings.NewReader(text)).ReadAll()
	if err != nil || len(rows) != 2 {
		return r, fmt.Errorf("read redis-benchmark's table: %d lines, %v", len(rows), err)
	}
	for i, name := range rows[0] {
		ms, err := strconv.ParseFloat(rows[1][i], 64)
		if err != nil {
			continue // the test's name
		}
		switch name {
		case "p50_latency_ms":
			r.p50 = time.Duration(ms * 1e6)
		case "p99_latency_ms":
			r.p99 = time.Duration(ms * 1e6)
		}
	}
	return r, nil
}

// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// The names are an interface: recorded results and scripts go by them.
func TestComparisonNames(t *testing.T) {
	b, err := json.Marshal(Comparison{Kernel: Run{RPS: 1}, Machine: machine()})
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Kernel, Offload map[string]any
		Ratio           *float64
		Machine         map[string]any
	}
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	for _, run := range []map[string]any{got.Kernel, got.Offload} {
		for _, name := range []string{"rps", "host_cpu_us_per_req", "dpu_cpu_us_per_req", "p50_us", "p99_us"} {
			if _, ok := run[name]; !ok {
				t.Errorf("no %s in %v", name, run)
			}
		}
	}
	if got.Ratio == nil {
		t.Error("no ratio")
	}
	for _, name := range []string{"cpu", "cpu_features", "cores", "kernel", "go", "pno"} {
		if _, ok := got.Machine[name]; !ok {
			t.Errorf("no machine.%s in %v", name, got.Machine)
		}
	}
}

func TestMedian(t *testing.T) {
	m := median([]Run{
		{RPS: 10, HostCPU: 4, P99: 900, Failed: 1},
		{RPS: 30, HostCPU: 2, P99: 100},
		{RPS: 20, HostCPU: 3, P99: 500, Failed: 2},
	})
	if m.RPS != 20 || m.HostCPU != 3 || m.P99 != 500 {
		t.Errorf("medians %+v", m)
	}
	if m.Failed != 3 || m.Spread < 0.66 || m.Spread > 0.67 || len(m.Runs) != 3 {
		t.Errorf("failed %d, spread %v, %d runs", m.Failed, m.Spread, len(m.Runs))
	}
}

func TestReadLog(t *testing.T) {
	for _, tc := range []struct {
		name, text       string
		requests, failed int
		p50              time.Duration
		bad              bool
	}{
		{"requests", "1\t200\t300\n2\t200\t100\n3\t200\t200\n", 3, 0, 200 * time.Microsecond, false},
		{"failures", "1\t200\t50\n2\t502\t100\n3\t-1\t0\n", 1, 2, 50 * time.Microsecond, false},
		{"nothing", "", 0, 0, 0, false},
		{"cut line", "1\t200\t50\n2\t2", 0, 0, 0, true},
		{"no number", "1\t200\tx\n", 0, 0, 0, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "log")
			if err := os.WriteFile(path, []byte(tc.text), 0o600); err != nil {
				t.Fatal(err)
			}
			r, err := readLog(path)
			if tc.bad != (err != nil) {
				t.Fatalf("error %v", err)
			}
			if err == nil && (r.requests != tc.requests || r.failed != tc.failed || r.p50 != tc.p50) {
				t.Errorf("got %+v", r)
			}
		})
	}
}

func TestProcessTreeTime(t *testing.T) {
	before, err := treeCPU(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for begun := time.Now(); time.Since(begun) < 20*time.Millisecond; {
		slices.Sort(make([]int, 1000))
	}
	after, err := treeCPU(os.Getpid())
	if err != nil || after <= before {
		t.Errorf("CPU time went from %v to %v, %v", before, after, err)
	}
}

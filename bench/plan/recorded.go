// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"pno/bench/results"
)

// measurement is what is of use of a comparison of pno bench.
type measurement struct {
	Benchmark string `json:"benchmark"`
	Size      int    `json:"size"`
	Close     bool   `json:"close"`
	Sendfile  bool   `json:"sendfile"`
	Offload   struct {
		// On the host's core nothing of the offload runs outside processes.
		Host float64 `json:"host_process_us_per_req"`
		DPU  float64 `json:"dpu_cpu_us_per_req"`
	} `json:"offload"`
}

func (m measurement) point() Point {
	return Point{Bytes: m.Size, Close: m.Close, Host: m.Offload.Host, DPU: m.Offload.DPU}
}

// ReadPoint takes a point from what pno bench -o json printed.
func ReadPoint(result []byte) (Point, error) {
	var m measurement
	if err := json.Unmarshal(result, &m); err != nil {
		return Point{}, err
	}
	switch m.Benchmark {
	case "nginx", "bulk", "conns":
		return m.point(), nil
	}
	return Point{}, fmt.Errorf("benchmark %q: nginx, bulk and conns are of use", m.Benchmark)
}

// Measured are the costs of the newest make bench: nginx by payload, bodies that
// are large, without sendfile, and a connection for each request.
func Measured() (Costs, error) { return fromTable(results.JSON) }

func fromTable(report []byte) (Costs, error) {
	var table struct {
		When    time.Time `json:"when"`
		Machine struct {
			Version string `json:"pno"`
		} `json:"machine"`
		Rows  []measurement `json:"rows"`
		Sweep []measurement `json:"sweep"`
	}
	if err := json.Unmarshal(report, &table); err != nil {
		return Costs{}, fmt.Errorf("read the newest measurement: %w", err)
	}
	var points []Point
	closes := false
	for _, m := range table.Sweep {
		points = append(points, m.point())
	}
	for _, m := range table.Rows {
		if m.Benchmark == "conns" || m.Benchmark == "bulk" && !m.Sendfile {
			points = append(points, m.point())
			closes = closes || m.Close
		}
	}
	if !closes {
		return Costs{}, errors.New("learn costs from the newest measurement: it does not tell what a connection costs")
	}
	c, err := Fit(points, "")
	if err != nil {
		return c, fmt.Errorf("learn costs from the newest measurement: %w", err)
	}
	of := fmt.Sprintf("make bench of %s, pno %s: ", table.When.Format(time.DateOnly), table.Machine.Version)
	c.Source = Sources{
		Request: of + "nginx by payload to 1 MiB without sendfile, least squares",
		Byte:    "the same",
		Conn:    of + "nginx with a connection each, less a request",
	}
	return c, nil
}

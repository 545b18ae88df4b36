// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"os"
	"runtime"
	"strings"

	"pno/internal/buildinfo"
	"pno/internal/cpufeat"
)

// Machine are the facts that a figure means nothing without.
type Machine struct {
	CPU      string   `json:"cpu"`
	Features []string `json:"cpu_features"`
	Cores    int      `json:"cores"`
	Kernel   string   `json:"kernel"`
	Go       string   `json:"go"`
	Version  string   `json:"pno"`
}

func machine() Machine {
	cpu := cpufeat.Detect()
	m := Machine{CPU: cpu.Model, Features: cpu.Names, Cores: runtime.NumCPU(), Go: runtime.Version(), Version: buildinfo.Version()}
	if b, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		m.Kernel = strings.TrimSpace(string(b))
	}
	return m
}

// SPDX-License-Identifier: Apache-2.0

package suites

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"
)

// report is docs/suites.md.
func report(scores []*score) string {
	var b strings.Builder
	b.WriteString(`# Other people's test suites

Written by ` + "`make suites`" + `: each module runs on kernel sockets and under ` + "`pno sim --offload-loopback`" + `, in network
namespaces of their own. "Offloaded" counts the cases that pass natively and pass offloaded, too. A module that had no
socket on the DPU proves nothing, and is left out of the sums; the differences are explained in compat.md.

`)
	fmt.Fprintf(&b, "%s, %s, %d CPUs, kernel %s.\n\n", time.Now().UTC().Format(time.DateOnly), machine(), runtime.NumCPU(), output("uname", "-r"))
	b.WriteString("| suite | module | cases | pass natively | offloaded | sockets on the DPU | left to the kernel |\n|---|---|--:|--:|--:|--:|---|\n")
	var cases, nat, off int
	for _, s := range scores {
		mark := ""
		if s.counts() {
			cases, nat, off = cases+s.cases, nat+s.native, off+s.offloaded
		} else {
			mark = " (not counted)"
		}
		fmt.Fprintf(&b, "| %s | %s%s | %d | %d | %d | %d | %s |\n", s.module.suite, s.module.name, mark, s.cases, s.native, s.offloaded,
			s.stats.Offloaded, left(s.stats.Kernel))
	}
	fmt.Fprintf(&b, "| | **sum of what counts** | **%d** | **%d** | **%d** (%.2f %%) | | |\n", cases, nat, off, 100*float64(off)/float64(max(nat, 1)))
	again := 0
	for _, s := range scores {
		again += s.again
	}
	if again > 0 {
		fmt.Fprintf(&b, "\n%d of these cases passed offloaded at the second attempt only.\n", again)
	}
	b.WriteString("\n## Cases that pass natively only\n\n| case | ends as | why |\n|---|---|---|\n")
	for _, s := range scores {
		for _, d := range s.differences {
			fmt.Fprintf(&b, "| %s | %s | %s |\n", d.name, d.got.Event, d.why)
		}
	}
	return b.String()
}

// left says which sockets were not offloaded.
func left(kernel map[string]uint64) string {
	var parts []string
	for reason, n := range kernel {
		if n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, reason))
		}
	}
	slices.Sort(parts)
	return strings.Join(parts, ", ")
}

func machine() string {
	content, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(content)) {
		if name, ok := strings.CutPrefix(line, "model name"); ok {
			return strings.TrimSpace(strings.TrimLeft(name, "\t :"))
		}
	}
	return runtime.GOARCH
}

func output(name string, args ...string) string {
	out, _ := exec.Command(name, args...).Output()
	return strings.TrimSpace(string(out))
}

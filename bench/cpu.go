// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// processCPU is the CPU time that all threads of a process used so far, live
// and ended, in the scheduler's nanoseconds (the process's CPU-time clock, see
// clock_getcpuclockid(3)). It includes softirqs that ran in its context.
func processCPU(pid int) (time.Duration, error) {
	const schedClock = 2 // CPUCLOCK_SCHED
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|schedClock), &ts); err != nil {
		return 0, fmt.Errorf("read CPU clock of process %d: %w", pid, err)
	}
	return time.Duration(ts.Nano()), nil
}

// userCPU is how much of processCPU was spent in user mode, as far as ticks tell.
func userCPU(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("read CPU times of process %d: %w", pid, err)
	}
	const utime = 14 - 3 // the first field after the name, which may hold spaces, is the third
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(f) <= utime {
		return 0, fmt.Errorf("read CPU times of process %d: %d fields", pid, len(f))
	}
	n, err := strconv.ParseInt(f[utime], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read CPU times of process %d: %w", pid, err)
	}
	return time.Duration(n) * time.Second / 100, nil // USER_HZ
}

// sleeps is how often the live threads of a process had nothing to do and left
// their core.
func sleeps(pid int) (n int, err error) {
	const field = "\nvoluntary_ctxt_switches:"
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			continue // it ended in between
		}
		_, rest, _ := strings.Cut(string(b), field)
		line, _, _ := strings.Cut(rest, "\n")
		one, err := strconv.Atoi(strings.TrimSpace(line))
		if err != nil {
			return 0, fmt.Errorf("count sleeps of process %d: %w", pid, err)
		}
		n += one
	}
	if len(files) == 0 {
		return 0, fmt.Errorf("count sleeps of process %d: no such process", pid)
	}
	return n, nil
}

// treeCPU sums processCPU over a process and its living descendants.
func treeCPU(root int) (time.Duration, error) {
	sum, err := processCPU(root)
	if err != nil {
		return 0, err
	}
	for _, pid := range children(root) {
		d, err := treeCPU(pid)
		if err != nil {
			continue // it ended in between
		}
		sum += d
	}
	return sum, nil
}

func children(pid int) []int {
	tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	var out []int
	for _, t := range tasks {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", pid, t.Name()))
		for _, f := range strings.Fields(string(b)) {
			if n, err := strconv.Atoi(f); err == nil {
				out = append(out, n)
			}
		}
	}
	return out
}

// coreTimes are the tick-counted times of one core since boot, /proc/stat.
type coreTimes struct {
	busy, softirq time.Duration
}

func readCore(core int) (coreTimes, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return coreTimes{}, fmt.Errorf("read core times: %w", err)
	}
	name := fmt.Sprintf("cpu%d ", core)
	for line := range strings.Lines(string(b)) {
		if !strings.HasPrefix(line, name) {
			continue
		}
		const user, nice, system, irq, softirq = 1, 2, 3, 6, 7
		f := strings.Fields(line)
		if len(f) <= softirq {
			break
		}
		tick := func(i int) time.Duration {
			n, _ := strconv.ParseInt(f[i], 10, 64)
			return time.Duration(n) * time.Second / 100 // USER_HZ
		}
		return coreTimes{
			busy:    tick(user) + tick(nice) + tick(system) + tick(irq) + tick(softirq),
			softirq: tick(irq) + tick(softirq),
		}, nil
	}
	return coreTimes{}, fmt.Errorf("no times of core %d in /proc/stat", core)
}

// cpuProbe measures the host's and the DPU's CPU time over an interval.
type cpuProbe struct {
	host, dpu []int // root processes
	core      int   // the proxy's core
	procs     time.Duration
	dpuTime   time.Duration
	times     coreTimes
}

func (p *cpuProbe) read() (procs, dpu time.Duration, c coreTimes, err error) {
	for _, pid := range p.host {
		d, e := treeCPU(pid)
		if e != nil {
			return 0, 0, c, e
		}
		procs += d
	}
	for _, pid := range p.dpu {
		d, e := treeCPU(pid)
		if e != nil {
			return 0, 0, c, e
		}
		dpu += d
	}
	c, err = readCore(p.core)
	return procs, dpu, c, err
}

func (p *cpuProbe) start() (err error) {
	p.procs, p.dpuTime, p.times, err = p.read()
	return err
}

// stop returns the CPU time since start: the host processes' own, and the
// softirq time of the proxy's core that no process was charged for. Softirqs
// that interrupt a process are in its own time already; counting the core's
// softirq ticks on top would count them twice, so only what the core was busy
// beyond its processes is added.
func (p *cpuProbe) stop() (host, softirq, dpu time.Duration, err error) {
	procs, d, c, err := p.read()
	if err != nil {
		return 0, 0, 0, err
	}
	host, dpu = procs-p.procs, d-p.dpuTime
	softirq = max(0, min(c.softirq-p.times.softirq, c.busy-p.times.busy-host))
	return host, softirq, dpu, nil
}

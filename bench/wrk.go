// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// wrk loads a web server whose connections end with each answer. (h2load may
// wait for ever for the last of them.) It knows no rate.
type wrk struct {
	*site
	url   string
	conns int
}

func (*wrk) steady() bool { return false }

func (w *wrk) run(ctx context.Context, d time.Duration, _ int) (loadResult, error) {
	out, err := exec.CommandContext(ctx, "ip", "netns", "exec", w.clientNS, "taskset", "-c", otherCore,
		"wrk", "-t", "1", "-c", strconv.Itoa(w.conns), "-d", strconv.Itoa(max(1, int(d.Seconds()+0.5)))+"s",
		"--latency", "-H", "Connection: close", w.url).CombinedOutput()
	if err != nil {
		return loadResult{}, fmt.Errorf("run wrk against %s: %w\n%s", w.url, err, out)
	}
	r, err := readWrk(string(out))
	if err == nil && r.requests == 0 {
		err = fmt.Errorf("wrk completed no request against %s\n%s", w.url, out)
	}
	return r, err
}

var (
	wrkTotal   = regexp.MustCompile(`(\d+) requests in ([0-9.]+m?s)`)
	wrkAt      = regexp.MustCompile(`(?m)^ +(50|99)% +([0-9.]+(?:us|ms|s))$`)
	wrkErrors  = regexp.MustCompile(`Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)`)
	wrkRefused = regexp.MustCompile(`Non-2xx or 3xx responses: (\d+)`)
)

// readWrk reads what wrk prints at its end.
func readWrk(text string) (r loadResult, err error) {
	total := wrkTotal.FindStringSubmatch(text)
	if total == nil {
		return r, fmt.Errorf("read wrk's summary: no total\n%s", text)
	}
	if r.requests, err = strconv.Atoi(total[1]); err != nil {
		return r, fmt.Errorf("read wrk's total: %w", err)
	}
	if r.elapsed, err = time.ParseDuration(total[2]); err != nil {
		return r, fmt.Errorf("read wrk's time: %w", err)
	}
	for _, m := range wrkAt.FindAllStringSubmatch(text, -1) {
		d, err := time.ParseDuration(strings.TrimSpace(m[2]))
		if err != nil {
			return r, fmt.Errorf("read wrk's latencies: %w", err)
		}
		if m[1] == "50" {
			r.p50 = d
		} else {
			r.p99 = d
		}
	}
	for _, re := range []*regexp.Regexp{wrkErrors, wrkRefused} {
		if m := re.FindStringSubmatch(text); m != nil {
			for _, n := range m[1:] {
				v, _ := strconv.Atoi(n) // digits by the pattern
				r.failed += v
			}
		}
	}
	return r, nil
}

// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// h2load loads a web server over HTTP/1.1.
type h2load struct {
	*site
	url   string
	conns int
}

// web loads the server on the host's port 80.
func (s *site) web(w Web) generator {
	url := fmt.Sprintf("http://%s:80/", s.hostAddr)
	if w.Close {
		return &wrk{site: s, url: url, conns: w.Conns}
	}
	return &h2load{site: s, url: url, conns: w.Conns}
}

func (*h2load) steady() bool { return true }

func (l *h2load) run(ctx context.Context, d time.Duration, rate int) (loadResult, error) {
	log := filepath.Join(l.t.dir, "h2load.log")
	_ = os.Remove(log)
	args := []string{"netns", "exec", l.clientNS, "taskset", "-c", otherCore, "h2load", "--h1",
		"-t", "1", "-c", strconv.Itoa(l.conns), "-D", strconv.FormatInt(d.Milliseconds(), 10) + "ms",
		"--log-file=" + log}
	if rate > 0 {
		args = append(args, "--rps="+strconv.FormatFloat(float64(rate)/float64(l.conns), 'f', 3, 64))
	}
	start := time.Now()
	out, err := exec.CommandContext(ctx, "ip", append(args, l.url)...).CombinedOutput()
	if err != nil {
		return loadResult{}, fmt.Errorf("run h2load against %s: %w\n%s", l.url, err, out)
	}
	r, err := readLog(log)
	r.elapsed = min(time.Since(start), d)
	if err == nil && r.requests == 0 {
		err = fmt.Errorf("h2load completed no request against %s\n%s", l.url, out)
	}
	return r, err
}

// readLog reads h2load's log: start time, HTTP status and duration in
// microseconds of each request, separated by tabs.
func readLog(path string) (r loadResult, err error) {
	f, err := os.Open(path)
	if err != nil {
		return r, fmt.Errorf("read h2load's log: %w", err)
	}
	defer f.Close()
	var us []int32
	for s := bufio.NewScanner(f); s.Scan(); {
		p := strings.Split(s.Text(), "\t")
		if len(p) != 3 {
			return r, fmt.Errorf("read h2load's log: line %q", s.Text())
		}
		if p[1] != "200" {
			r.failed++
			continue
		}
		n, err := strconv.Atoi(p[2])
		if err != nil {
			return r, fmt.Errorf("read h2load's log: line %q: %w", s.Text(), err)
		}
		us = append(us, int32(n))
	}
	r.requests = len(us)
	if len(us) == 0 {
		return r, nil
	}
	slices.Sort(us)
	at := func(q float64) time.Duration {
		return time.Duration(us[int(q*float64(len(us)-1))]) * time.Microsecond
	}
	r.p50, r.p99 = at(0.50), at(0.99)
	return r, nil
}

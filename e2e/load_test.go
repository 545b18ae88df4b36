// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// load is a running load generator in the client's namespace.
type load struct {
	l     *lab
	p     *proc
	out   *bufio.Reader
	limit time.Duration
}

var loadNumber atomic.Int64

// startLoad starts a load generator.
func (l *lab) startLoad(spec loadSpec) *load {
	l.t.Helper()
	p := spawn(l.t, l.dir, "load-"+strconv.FormatInt(loadNumber.Add(1), 10), l.client, []string{os.Args[0]},
		spawnOptions{env: []string{roleEnv + "=" + roleLoad}, pipe: true, dies: true})
	line, err := json.Marshal(spec)
	if err == nil {
		_, err = fmt.Fprintf(p.stdin, "%s\n", line)
	}
	if err != nil {
		l.t.Fatalf("start the load generator: %v", err)
	}
	return &load{l: l, p: p, out: bufio.NewReader(p.stdout), limit: 60 * time.Second}
}

// line reads one line of the generator's output.
func (d *load) line() string {
	d.l.t.Helper()
	type answer struct {
		text string
		err  error
	}
	ch := make(chan answer, 1)
	go func() {
		text, err := d.out.ReadString('\n')
		ch <- answer{strings.TrimSpace(text), err}
	}()
	select {
	case a := <-ch:
		if a.err != nil {
			d.l.t.Fatalf("load generator: %v\n%s", a.err, d.p.logText())
		}
		return a.text
	case <-time.After(d.limit):
		d.l.diagnose()
		d.l.t.Fatalf("load generator: no answer after %v", d.limit)
		return ""
	}
}

// held waits until all connections are open and used once (Hold).
func (d *load) held() {
	d.l.t.Helper()
	if text := d.line(); text != "held" {
		d.l.t.Fatalf("load generator said %q", text)
	}
}

// stop lets it finish what it has begun (with Hold: do the second half), and
// returns the result.
func (d *load) stop() *loadResult {
	d.l.t.Helper()
	d.p.stdin.Close()
	return d.result()
}

// result waits for the end of a load with a fixed number of requests.
func (d *load) result() *loadResult {
	d.l.t.Helper()
	r := new(loadResult)
	if err := json.Unmarshal([]byte(d.line()), r); err != nil {
		d.l.t.Fatalf("read the load generator's result: %v", err)
	}
	d.p.wait(10 * time.Second)
	return r
}

// runLoad is a whole load with a fixed number of requests that must all be
// answered right at the first try.
func (l *lab) runLoad(what string, spec loadSpec) *loadResult {
	l.t.Helper()
	r := l.startLoad(spec).result()
	l.checkLoad(what, r)
	if spec.Requests > 0 && r.Requests != spec.Requests {
		l.t.Errorf("%s: %d of %d requests were answered", what, r.Requests, spec.Requests)
	}
	return r
}

// checkLoad fails the test for any failed request.
func (l *lab) checkLoad(what string, r *loadResult) {
	l.t.Helper()
	l.t.Logf("%s: %v", what, r)
	if r.failed() > 0 {
		l.t.Errorf("%s: %d requests failed: %v (last: %s)", what, r.failed(), r.Failures, r.LastError)
	}
	if r.Requests == 0 {
		l.t.Errorf("%s: no request was answered", what)
	}
}

// during runs a load for a time.
func (l *lab) during(d time.Duration, spec loadSpec) *loadResult {
	l.t.Helper()
	g := l.startLoad(spec)
	time.Sleep(d)
	return g.stop()
}

// clientSources are all addresses of the client.
func clientSources() (from []string) {
	for i := range clientAddrs {
		from = append(from, fmt.Sprintf("198.18.0.%d", 10+i))
	}
	return from
}

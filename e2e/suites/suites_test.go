// SPDX-License-Identifier: Apache-2.0

package suites

import (
	"flag"
	"os"
	"path"
	"testing"
)

var (
	allFlag    = flag.Bool("all", false, "run every suite (TestAll)")
	onlyFlag   = flag.String("only", "", "of these, the modules whose names match this glob")
	recordFlag = flag.String("record", "", "write the results to this file")
)

// TestQuick runs the part of the suites that is quick.
func TestQuick(t *testing.T) {
	needRoot(t)
	for _, m := range quick() {
		t.Run(m.name, func(t *testing.T) {
			s := judge(t, m)
			if !s.counts() || s.native == 0 {
				t.Errorf("%d sockets were offloaded in %d cases: this proves nothing", s.stats.Offloaded, s.native)
			}
		})
	}
}

// TestAll runs everything. It fails for differences that nobody has explained.
func TestAll(t *testing.T) {
	if !*allFlag {
		t.Skip("takes the better part of an hour: make suites")
	}
	needRoot(t)
	var scores []*score
	for _, m := range all() {
		if ok, err := path.Match(*onlyFlag, m.name); *onlyFlag != "" && (!ok || err != nil) {
			continue
		}
		t.Run(m.name, func(t *testing.T) { scores = append(scores, judge(t, m)) })
	}
	text := report(scores)
	t.Logf("\n%s", text)
	if *recordFlag != "" {
		if err := os.WriteFile(*recordFlag, []byte(text), 0o644); err != nil {
			t.Error(err)
		}
	}
}

// judge runs a module on both sides and fails the test for every difference
// that is not known.
func judge(t *testing.T, m module) *score {
	t.Helper()
	n, o := run(t, m, native, nil), run(t, m, offloaded, nil)
	s := compare(m, n, o)
	if len(s.differences) > 0 {
		s.retry(run(t, m, offloaded, s.names()))
	}
	t.Logf("%d cases; %d pass natively, of these %d offloaded (%d at the second attempt); %d sockets offloaded, left to the kernel %v; %.1f and %.1f s",
		s.cases, s.native, s.offloaded, s.again, s.stats.Offloaded, s.stats.Kernel, n.took.Seconds(), o.took.Seconds())
	for _, d := range s.explain() {
		t.Errorf("%s passes natively, but offloaded: %s\n%s", d.name, d.got.Event, tail(d.got.Detail, 800))
	}
	for _, d := range s.differences {
		if d.why != "" {
			t.Logf("known: %s: %s", d.name, d.why)
		}
	}
	return s
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, for network namespaces")
	}
}

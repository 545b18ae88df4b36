// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"strings"
	"testing"
	"time"
)

// TestOptionsUnserved holds that an option nobody acts on is refused. A stack
// that says yes and does nothing is worse than one that says no.
func TestOptionsUnserved(t *testing.T) {
	l := newLab(t)
	l.needOffload()
	l.scripted()
	out, err := l.runApp("options", 30*time.Second, script(l, "options.py", servedAddr, backendAddr, "unserved")...)
	if err != nil {
		t.Fatalf("it ended with %v:\n%s", err, out)
	}
	for line := range strings.Lines(out) {
		if strings.HasSuffix(strings.TrimSpace(line), ": ok") {
			t.Errorf("accepted, but nobody acts on it: %s", line)
		}
	}
	t.Logf("\n%s", out)
}

// TestOptionsValues holds that values are the kernel's, and do what they say.
func TestOptionsValues(t *testing.T) {
	t.Parallel() // it waits more than it works
	inBothModes(t, func(l *lab) string {
		l.scripted()
		out, err := l.runApp("options", 60*time.Second, script(l, "options.py", servedAddr, backendAddr, "values")...)
		if err != nil {
			l.t.Errorf("it ended with %v:\n%s", err, out)
		}
		return out
	})
}

// TestOptionsAct holds that what is accepted has its effect.
func TestOptionsAct(t *testing.T) {
	t.Parallel() // it waits more than it works
	inBothModes(t, func(l *lab) string {
		l.scripted()
		p := l.appWith("options", spawnOptions{dies: true}, script(l, "options.py", servedAddr, backendAddr, "acting")...)
		p.waitLog("cut", 1, 30*time.Second)
		l.backend.LinkDown("eth0")
		if err := p.wait(40 * time.Second); err != nil {
			l.t.Errorf("it ended with %v", err)
		}
		return p.logText()
	})
}

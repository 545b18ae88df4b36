// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"testing"
	"time"
)

// TestThousandConnections keeps a thousand connections busy at once.
func TestThousandConnections(t *testing.T) {
	l := newLab(t)
	l.backendNginx()
	pages := testSite(t).pick("64b", "1k", "1b")
	l.run("nginx", func(l *lab) {
		l.nginx(nginxConf{Workers: 2, Sendfile: true})
		l.runLoad("1000 connections", loadSpec{Addr: servedAddr + ":80", Objects: pages, Conns: 1000, Requests: 20000})
	})
	l.run("haproxy", func(l *lab) {
		l.haproxy(haproxyConf{Threads: 2})
		l.runLoad("1000 connections", loadSpec{Addr: haHTTP, Objects: pages, Conns: 1000, Requests: 20000})
		l.checkServers()
	})
}

// TestIdleConnections opens ten thousand connections, leaves them alone, and
// uses each again.
func TestIdleConnections(t *testing.T) {
	const conns = 10000
	l := newLab(t)
	server := l.nginx(nginxConf{Sendfile: true, Listen: servedAddr + ":80 backlog=4096"})
	procs := l.watched(map[string]*proc{"nginx": server})
	spec := loadSpec{Addr: servedAddr + ":80", From: clientSources(), Objects: testSite(t).pick("64b")}
	l.warmUp(spec, procs)
	before := l.footprint(procs)
	spec.Conns, spec.Hold = conns, true
	g := l.startLoad(spec)
	g.held()
	time.Sleep(time.Second)
	idle := l.footprint(procs)
	for name := range procs {
		t.Logf("%s: %.0f bytes for each of %d idle connections (%v → %v)", name,
			float64(idle.procs[name].rss-before.procs[name].rss)/conns, conns, before.procs[name], idle.procs[name])
	}
	if l.mode == modeOffload && idle.connections < conns {
		t.Errorf("the DPU has %d connections open, not %d", idle.connections, conns)
	}
	r := g.stop()
	l.checkLoad("use after the wait", r)
	if r.Requests != 2*conns {
		t.Errorf("%d of %d requests were answered", r.Requests, 2*conns)
	}
	l.checkReturns(procs, before, 0)
}

// churnTotal connections are opened and closed, one request on each. What does
// not fit into churnTime is left out, and said.
const (
	churnTotal = 200000
	churnTime  = 60 * time.Second
)

// TestChurn looks for what a connection leaves behind.
func TestChurn(t *testing.T) {
	l := newLab(t)
	server := l.nginx(nginxConf{Workers: 2, Sendfile: true})
	procs := l.watched(map[string]*proc{"nginx": server})
	spec := loadSpec{Addr: servedAddr + ":80", From: clientSources(), Objects: testSite(t).pick("64b"), Conns: 64}

	l.warmUp(spec, procs)
	before := l.footprint(procs)

	done := int64(0)
	for _, how := range []struct {
		name          string
		close, hangup bool
	}{{"server closes", true, false}, {"client closes", false, true}} {
		s := spec
		s.Requests, s.Close, s.Hangup = churnTotal/2, how.close, how.hangup
		g := l.startLoad(s)
		select {
		case <-g.p.done:
		case <-time.After(churnTime / 2):
			t.Logf("%s: not all fit into %v", how.name, churnTime/2)
		}
		r := g.stop()
		l.checkLoad(how.name, r)
		done += r.Requests
	}
	t.Logf("%d connections opened and closed", done)
	if done < churnTotal/4 {
		t.Errorf("only %d connections in %v", done, churnTime)
	}
	l.checkReturns(procs, before, done)
}

// warmUp lets grow what grows with the first connections and is no leak.
func (l *lab) warmUp(spec loadSpec, procs map[string]*proc) {
	l.t.Helper()
	spec.Requests, spec.Conns, spec.Close = 5000, 64, true
	l.runLoad("warm up", spec)
	l.settle(procs)
}

// footprint is what the processes hold, and what the DPU says it holds for
// them.
type footprint struct {
	procs       map[string]usage
	connections int    // of the DPU, not counting those in TIME_WAIT
	ringUsed    uint64 // bytes in rings that were not given back
}

func (f footprint) String() string {
	return fmt.Sprintf("%v, %d connections, %d ring bytes in use", f.procs, f.connections, f.ringUsed)
}

// watched adds the daemons to the processes under test.
func (l *lab) watched(procs map[string]*proc) map[string]*proc {
	if l.mode == modeOffload {
		procs["dpud"], procs["hostd"] = l.dpud, l.hostd
	}
	return procs
}

func (l *lab) footprint(procs map[string]*proc) footprint {
	l.t.Helper()
	f := footprint{procs: map[string]usage{}}
	for name, p := range procs {
		f.procs[name] = p.usage()
	}
	if l.mode == modeOffload {
		f.connections, f.ringUsed = l.dpuHolds()
	}
	return f
}

// settle waits until closed connections are gone everywhere.
func (l *lab) settle(procs map[string]*proc) {
	l.t.Helper()
	var f footprint
	if !poll(30*time.Second, func() bool {
		f = l.footprint(procs)
		return f.connections == 0 && f.ringUsed == 0
	}) {
		l.t.Errorf("the DPU still holds something: %v", f)
		l.diagnose()
	}
}

// checkReturns expects the processes to come back to what they held before,
// apart from memory that an allocator keeps. The DPU's heap has held some fifty
// thousand closed connections in TIME_WAIT, and the collector gives back what
// they took when it sees fit: the slack is below 512 bytes for each connection
// of TestChurn, less than the smallest thing a leaked one would hold.
func (l *lab) checkReturns(procs map[string]*proc, before footprint, connections int64) {
	l.t.Helper()
	const rssSlack = 96 << 20
	l.settle(procs)
	fdsBack := func() bool {
		now := l.footprint(procs)
		for name, u := range now.procs {
			if u.fds > before.procs[name].fds {
				return false
			}
		}
		return true
	}
	if !poll(30*time.Second, fdsBack) {
		l.t.Errorf("descriptors leaked")
	}
	l.t.Logf("before: %v", before)
	if connections == 0 {
		l.t.Logf("after:  %v", l.footprint(procs))
		return // a footprint of many connections at once, not a leak
	}
	grown := ""
	memoryBack := func() bool {
		grown = ""
		for name, u := range l.footprint(procs).procs {
			if more := u.rss - before.procs[name].rss; more > rssSlack {
				grown += fmt.Sprintf(" %s by %.1f MiB", name, float64(more)/(1<<20))
			}
		}
		return grown == ""
	}
	back := poll(30*time.Second, memoryBack)
	l.t.Logf("after:  %v", l.footprint(procs))
	if !back {
		l.t.Errorf("over %d connections memory grew:%s", connections, grown)
	}
}

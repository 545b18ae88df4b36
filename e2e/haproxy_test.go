// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/csv"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The ports of the HAProxy under test.
const (
	haHTTP = servedAddr + ":80"
	haTCP  = servedAddr + ":81"
)

// checkedServers are there for their health checks only: a check may wait for
// longer than a lost packet takes to be sent again, and there are many of them
// all the same.
const checkedServers = 10

// haproxyConf is what the tests vary. The rest is as Debian has it: chroot and
// a user of its own, taken up after the ports are bound.
type haproxyConf struct {
	Threads int
	Master  bool   // -W
	Backend string // address of the server; default the kernel nginx
	Splice  bool   // data goes through kernel pipes
}

func (l *lab) haproxy(c haproxyConf) *proc {
	l.t.Helper()
	if c.Backend == "" {
		c.Backend = backendAddr + ":80"
	}
	jail := l.path("jail")
	if err := os.MkdirAll(jail, 0o755); err != nil {
		l.t.Fatal(err)
	}
	splice := ""
	if c.Splice {
		splice = "option splice-request\n  option splice-response"
	}
	conf := l.write("haproxy.cfg", fmt.Sprintf(`global
  nbthread %d
  maxconn 4000
  log stderr format raw local0 notice
  chroot %s
  user haproxy
  group haproxy
  stats socket %s mode 600 level admin expose-fd listeners
defaults
  log global
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  timeout check 5s
  http-reuse always
  retries 0
  %[7]s
  default-server check inter 4s fall 1 rise 1
frontend web
  mode http
  bind %[4]s
  default_backend web
backend web
  mode http
  option httpchk GET /64b
  server one %[5]s
listen stream
  mode tcp
  bind %[6]s
  server one %[5]s
backend checked
  mode http
  option httpchk GET /64b
  server-template more- %[8]d %[5]s
`, max(c.Threads, 1), jail, l.path("haproxy.sock"), haHTTP, c.Backend, haTCP, splice, checkedServers))
	argv := []string{"haproxy", "-db", "-f", conf}
	if c.Master {
		argv = []string{"haproxy", "-W", "-f", conf}
	}
	p := l.app("haproxy", argv...)
	l.waitListening(p, haHTTP)
	l.waitListening(p, haTCP)
	l.waitServersUp()
	return p
}

// haServer is one line of HAProxy's own view of its servers.
type haServer struct {
	backend, status     string
	checkFailed, downs  int
	retries, connErrors int
}

// haServers asks HAProxy over its stats socket, which is a Unix socket and so
// never offloaded.
func (l *lab) haServers() (servers []haServer, err error) {
	c, err := net.DialTimeout("unix", l.path("haproxy.sock"), 20*time.Second)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(c, "show stat\n"); err != nil {
		return nil, err
	}
	out, err := io.ReadAll(c)
	if err != nil {
		return nil, err
	}
	rows, err := csv.NewReader(strings.NewReader(strings.TrimPrefix(strings.TrimSpace(string(out)), "# "))).ReadAll()
	if err != nil {
		return nil, err
	}
	column := map[string]int{}
	for i, name := range rows[0] {
		column[name] = i
	}
	for _, row := range rows[1:] {
		if name := row[column["svname"]]; name != "one" && !strings.HasPrefix(name, "more-") {
			continue
		}
		number := func(name string) int {
			n, _ := strconv.Atoi(row[column[name]])
			return n
		}
		servers = append(servers, haServer{row[column["pxname"]], row[column["status"]],
			number("chkfail"), number("chkdown"), number("wretr"), number("econ")})
	}
	return servers, nil
}

func (l *lab) waitServersUp() {
	l.t.Helper()
	var servers []haServer
	var err error
	if !poll(30*time.Second, func() bool {
		servers, err = l.haServers()
		for _, s := range servers {
			if s.status != "UP" {
				return false
			}
		}
		return len(servers) == 2+checkedServers
	}) {
		l.t.Fatalf("servers do not come up: %+v %v", servers, err)
	}
}

// checkServers expects that no health check ever failed: a hang-up reported
// while a connection is still being made takes a server down.
func (l *lab) checkServers() {
	l.t.Helper()
	servers, err := l.haServers()
	if err != nil {
		l.t.Fatal(err)
	}
	for _, s := range servers {
		if s.status != "UP" || s.checkFailed+s.downs+s.retries+s.connErrors > 0 {
			l.t.Errorf("server of %s: %+v", s.backend, s)
		}
	}
}

func TestHAProxy(t *testing.T) {
	l := newLab(t)
	l.backendNginx()
	for _, c := range []haproxyConf{{Threads: 1}, {Threads: 2}, {Threads: 1, Master: true}, {Threads: 2, Master: true}} {
		l.run(fmt.Sprintf("threads=%d/master=%v", c.Threads, c.Master), func(l *lab) {
			p := l.haproxy(c)
			pages := testSite(l.t).pick("64b", "1k", "64k", "1b", "1k", "64b", "1m", "1b")
			for _, port := range []struct{ mode, addr string }{{"http", haHTTP}, {"tcp", haTCP}} {
				l.run("mode="+port.mode, func(l *lab) {
					addr := port.addr
					l.runLoad("keep-alive", loadSpec{Addr: addr, Objects: pages, Conns: 32, Requests: 800})
					l.runLoad("close", loadSpec{Addr: addr, Objects: pages, Conns: 32, Requests: 300, Close: true})
					l.runLoad("client closes", loadSpec{Addr: addr, Objects: pages, Conns: 32, Requests: 300, Hangup: true})
				})
			}
			l.wrk(haHTTP, "64b")
			l.checkServers()
			p.ending = true
			p.signal(syscall.SIGUSR1)
			p.wait(30 * time.Second)
		})
	}
	l.checkOffloaded()
}

// TestHAProxyStop lets transfers finish and takes no new connections.
func TestHAProxyStop(t *testing.T) {
	l := newLab(t)
	l.backendNginx()
	for _, threads := range []int{1, 2} {
		l.run(fmt.Sprintf("threads=%d", threads), func(l *lab) {
			p := l.haproxy(haproxyConf{Threads: threads})
			// Large bodies: what fits into buffers is over for HAProxy while
			// its client still reads.
			const conns = 8
			begun := time.Now()
			g := l.startLoad(loadSpec{Addr: haHTTP, Objects: testSite(l.t).pick("16m"), Conns: conns, Requests: conns, Rate: 8 << 20})
			time.Sleep(500 * time.Millisecond)
			p.ending = true
			p.signal(syscall.SIGUSR1)
			if !poll(30*time.Second, func() bool {
				c, err := l.client.DialContext(t.Context(), "tcp", haHTTP)
				if err == nil {
					c.Close()
				}
				return err != nil && strings.Contains(err.Error(), "connection refused")
			}) {
				l.t.Error("connections are still accepted after USR1")
			}
			if p.ended() && time.Since(begun) < 1500*time.Millisecond { // they take two seconds
				l.t.Error("it ended before its transfers")
			}
			r := g.result()
			l.checkLoad("transfers across a graceful stop", r)
			if r.Requests != conns {
				l.t.Errorf("%d of %d transfers were completed", r.Requests, conns)
			}
			if err := p.wait(30 * time.Second); err != nil {
				l.t.Errorf("haproxy ended with %v", err)
			}
		})
	}
}

// TestHAProxyPause has it stop to listen for a while, and keep its port.
func TestHAProxyPause(t *testing.T) {
	l := newLab(t)
	l.backendNginx()
	p := l.haproxy(haproxyConf{Threads: 2})
	kept := l.startLoad(loadSpec{Addr: haTCP, Objects: testSite(t).pick("1k"), Conns: 4})
	time.Sleep(300 * time.Millisecond)
	var last error
	accepts := func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var c net.Conn
		if c, last = l.client.DialContext(ctx, "tcp", haHTTP); last == nil {
			c.Close()
		}
		return last == nil
	}
	for range 2 {
		p.signal(syscall.SIGTTOU)
		if !poll(30*time.Second, func() bool { return !accepts() }) {
			t.Fatal("connections are accepted while it pauses")
		}
		p.signal(syscall.SIGTTIN)
		if !poll(30*time.Second, accepts) {
			l.diagnose()
			t.Fatalf("connections are not accepted after the pause: %v", last)
		}
		l.runLoad("after a pause", loadSpec{Addr: haHTTP, Objects: testSite(t).pick("1k", "64k"), Conns: 8, Requests: 200, Close: true})
	}
	l.checkLoad("connections kept across pauses", kept.stop())
}

// TestHAProxyReload starts new workers, which get the listeners of the old ones.
func TestHAProxyReload(t *testing.T) {
	l := newLab(t)
	l.backendNginx()
	for _, threads := range []int{1, 2} {
		l.run(fmt.Sprintf("threads=%d", threads), func(l *lab) {
			p := l.haproxy(haproxyConf{Threads: threads, Master: true})
			l.run("mode=http", func(l *lab) {
				l.traffic("reload", haHTTP, func() { l.reloadHAProxy(p) })
			})
			l.run("mode=tcp", func(l *lab) {
				l.traffic("reload", haTCP, func() { l.reloadHAProxy(p) })
			})
			l.waitServersUp()
			l.checkServers()
			p.ending = true
			p.signal(syscall.SIGTERM)
			p.wait(30 * time.Second)
		})
	}
}

// reloadHAProxy sends USR2 twice and waits for the new worker each time. Old
// workers may stay for as long as they have connections.
func (l *lab) reloadHAProxy(p *proc) {
	l.t.Helper()
	for range 2 {
		before := children(p.pid())
		p.signal(syscall.SIGUSR2)
		if !poll(30*time.Second, func() bool {
			for _, pid := range children(p.pid()) {
				if disjoint([]int{pid}, before) {
					return true
				}
			}
			return false
		}) {
			l.t.Fatalf("no new worker after USR2: before %v, now %v", before, children(p.pid()))
		}
		time.Sleep(300 * time.Millisecond)
	}
}

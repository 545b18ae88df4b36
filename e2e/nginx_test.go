// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"pno/internal/netns"
)

// nginxConf is what the tests vary. The rest is as Debian has it: a master
// that is root, workers that are not.
type nginxConf struct {
	Name     string // of files and log; default nginx
	Listen   string // address and options; default servedAddr:80
	Workers  int    // default 1
	Sendfile bool
	Daemon   bool   // it goes to the background by itself
	Server   string // more lines for the server block
	Main     string // more lines for the top level
}

func (c nginxConf) withDefaults() nginxConf {
	if c.Name == "" {
		c.Name = "nginx"
	}
	if c.Listen == "" {
		c.Listen = servedAddr + ":80"
	}
	c.Workers = max(c.Workers, 1)
	return c
}

func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}

// writeNginx writes the configuration and returns the command line.
func (l *lab) writeNginx(c nginxConf) []string {
	l.t.Helper()
	c = c.withDefaults()
	tmp, up := l.path(c.Name+"-tmp"), l.path(c.Name+"-up")
	for _, dir := range []string{tmp, up} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			l.t.Fatal(err)
		}
		chownTo(l.t, dir, "www-data")
	}
	conf := l.write(c.Name+".conf", fmt.Sprintf(`daemon %s;
user www-data;
worker_processes %d;
worker_rlimit_nofile 20000;
pid %s;
error_log stderr warn;
%s
events { worker_connections 16384; }
http {
  access_log off;
  sendfile %s;
  keepalive_timeout 300s;
  keepalive_requests 100000000;
  client_max_body_size 0;
  client_body_temp_path %[6]s/body;
  proxy_temp_path %[6]s/proxy;
  fastcgi_temp_path %[6]s/fastcgi;
  uwsgi_temp_path %[6]s/uwsgi;
  scgi_temp_path %[6]s/scgi;
  server {
    listen %[7]s;
    root %[8]s;
    location /up/ { alias %[9]s/; dav_methods PUT; }
    location /whoami { return 200 "$pid\n"; }
    %[10]s
  }
}
`, onOff(c.Daemon), c.Workers, l.path(c.Name+".pid"), c.Main, onOff(c.Sendfile), tmp, c.Listen, testSite(l.t).root, up, c.Server))
	// nginx starts its successor by the name it was started with.
	program, err := exec.LookPath("nginx")
	if err != nil {
		l.t.Fatal(err)
	}
	return []string{program, "-p", l.dir, "-e", "stderr", "-c", conf}
}

// nginx starts nginx on the host, under the shim in offload mode.
func (l *lab) nginx(c nginxConf) *proc {
	l.t.Helper()
	c = c.withDefaults()
	p := l.app(c.Name, l.writeNginx(c)...)
	addr, _, _ := strings.Cut(c.Listen, " ")
	l.waitListening(p, addr)
	l.t.Cleanup(func() { checkNginxLog(l.t, p) })
	return p
}

// kernelNginx starts an ordinary nginx in another namespace.
func (l *lab) kernelNginx(ns *netns.NS, c nginxConf) *proc {
	l.t.Helper()
	c = c.withDefaults()
	p := spawn(l.t, l.dir, c.Name, ns, l.writeNginx(c), spawnOptions{})
	l.waitListening(p, c.Listen)
	return p
}

// backendNginx is the back end of the proxies.
func (l *lab) backendNginx() *proc {
	return l.kernelNginx(l.backend, nginxConf{Name: "backend", Listen: backendAddr + ":80"})
}

var nginxAlarm = regexp.MustCompile(`\[(alert|crit|emerg)\]`)

// checkNginxLog fails for what nginx itself thinks is alarming.
func checkNginxLog(t testing.TB, p *proc) {
	found := 0
	for line := range strings.Lines(p.logText()) {
		if found == 5 {
			return
		}
		if nginxAlarm.MatchString(line) && (p.expect == "" || !strings.Contains(line, p.expect)) {
			t.Errorf("%s: %s", p.name, strings.TrimSpace(line))
			found++
		}
	}
}

func chownTo(t testing.TB, path, name string) {
	t.Helper()
	u, err := user.Lookup(name)
	if err != nil {
		t.Fatal(err)
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	if err := os.Chown(path, uid, gid); err != nil {
		t.Fatal(err)
	}
}

// TestNginx is the main job: stock nginx, all ways to send a file, stock
// clients.
func TestNginx(t *testing.T) {
	l := newLab(t)
	for _, workers := range []int{1, 2} {
		for _, sendfile := range []bool{true, false} {
			l.run(fmt.Sprintf("workers=%d/sendfile=%s", workers, onOff(sendfile)), func(l *lab) {
				master := l.nginx(nginxConf{Workers: workers, Sendfile: sendfile})
				l.run("curl", testCurl)
				l.run("load", testPages)
				l.run("wrk", testWrk)
				if workers > 1 {
					l.run("every worker serves", testWorkersServe)
				}
				l.run("quit", func(l *lab) {
					master.t = l.t
					master.stop(syscall.SIGQUIT, 10*time.Second)
				})
			})
		}
	}
	l.checkOffloaded()
}

// testCurl fetches every size on one connection, and each on its own.
func testCurl(l *lab) {
	site := testSite(l.t)
	pages := site.pick("1b", "64b", "1k", "64k", "1m")
	for _, how := range []struct {
		name  string
		args  []string
		conns int
	}{
		{"keep-alive", nil, 1},
		{"close", []string{"-H", "Connection: close"}, len(pages)},
		{"HTTP 1.0", []string{"-0"}, len(pages)},
	} {
		args := append([]string{"curl", "-sS", "--max-time", "20", "-w", "%{num_connects}\n"}, how.args...)
		for _, o := range pages {
			args = append(args, "-o", l.path("got-"+o.Name), "http://"+servedAddr+"/"+o.Name)
		}
		out := l.mustClientRun(30*time.Second, args...)
		conns := 0
		for _, n := range strings.Fields(out) {
			v, _ := strconv.Atoi(n)
			conns += v
		}
		if conns != how.conns {
			l.t.Errorf("%s: curl made %d connections, not %d", how.name, conns, how.conns)
		}
		for _, o := range pages {
			if sum := fileSum(l.t, l.path("got-"+o.Name)); sum != o.Sum {
				l.t.Errorf("%s: /%s has sum %s, not %s", how.name, o.Name, sum, o.Sum)
			}
			os.Remove(l.path("got-" + o.Name))
		}
	}
}

// testPages checks every page of a busy server.
func testPages(l *lab) {
	pages := testSite(l.t).pick("64b", "1k", "64k", "1b", "1k", "64b", "1m", "1b")
	addr := servedAddr + ":80"
	keep := l.runLoad("keep-alive", loadSpec{Addr: addr, Objects: pages, Conns: 32, Requests: 1500})
	if keep.Connections > 32 || keep.Again > 0 {
		l.t.Errorf("kept connections were closed: %d made, %d requests sent again", keep.Connections, keep.Again)
	}
	l.runLoad("close", loadSpec{Addr: addr, Objects: pages, Conns: 32, Requests: 500, Close: true})
	l.runLoad("client closes", loadSpec{Addr: addr, Objects: pages, Conns: 32, Requests: 500, Hangup: true})
}

// testWrk runs a stock load generator, which knows socket errors of its own.
func testWrk(l *lab) {
	l.wrk(servedAddr+":80", "64b")
	l.wrk(servedAddr+":80", "1k", "-H", "Connection: close")
}

var (
	wrkRequests = regexp.MustCompile(`(\d+) requests in`)
	wrkTrouble  = regexp.MustCompile(`(?m)^\s*(Socket errors|Non-2xx).*$`)
)

func (l *lab) wrk(addr, page string, args ...string) {
	l.t.Helper()
	argv := append([]string{"wrk", "-t1", "-c64", "-d1s", "--timeout", "5s"}, args...)
	out := l.mustClientRun(20*time.Second, append(argv, "http://"+addr+"/"+page)...)
	if trouble := wrkTrouble.FindString(out); trouble != "" {
		l.t.Errorf("wrk %v: %s", args, strings.TrimSpace(trouble))
	}
	m := wrkRequests.FindStringSubmatch(out)
	if m == nil || m[1] == "0" {
		l.t.Fatalf("wrk got no answer:\n%s", out)
	}
	l.t.Logf("wrk /%s %v: %s requests", page, args, m[1])
}

// testWorkersServe makes connections until each worker has had one.
func testWorkersServe(l *lab) {
	served := map[string]int{}
	for range 64 {
		out := l.mustClientRun(10*time.Second, "curl", "-sS", "--max-time", "5", "http://"+servedAddr+"/whoami")
		served[strings.TrimSpace(out)]++
		if len(served) == 2 {
			return
		}
	}
	l.t.Errorf("64 connections were served by %v, not by two workers", served)
}

// TestNginxReload replaces the workers, and then the whole program, in traffic.
// The master is a daemon, as Debian runs it; in the foreground nginx refuses to
// change its binary.
func TestNginxReload(t *testing.T) {
	l := newLab(t)
	c := nginxConf{Workers: 2, Sendfile: true, Daemon: true}
	if out, err := l.runApp("nginx", 10*time.Second, l.writeNginx(c)...); err != nil {
		t.Fatalf("start nginx: %v\n%s", err, out)
	}
	pidFile := l.path("nginx.pid")
	master := readPid(pidFile)
	t.Cleanup(func() { l.endDaemon(readPid(pidFile)) })
	t.Cleanup(func() { l.endDaemon(master) })

	l.traffic("reload", servedAddr+":80", func() {
		before := children(master)
		for range 3 {
			kill(t, master, syscall.SIGHUP)
			if !poll(30*time.Second, func() bool { return len(children(master)) == 2 && disjoint(before, children(master)) }) {
				t.Fatalf("workers before the reload %v, after %v", before, children(master))
			}
			before = children(master)
		}
	})
	l.traffic("binary upgrade", servedAddr+":80", func() {
		kill(t, master, syscall.SIGUSR2)
		if !poll(30*time.Second, func() bool {
			successor := readPid(pidFile)
			return successor > 0 && successor != master && len(children(successor)) == 2
		}) {
			t.Fatalf("no new master appeared, pid file says %d", readPid(pidFile))
		}
		kill(t, master, syscall.SIGQUIT)
		if !poll(30*time.Second, func() bool { return !alive(master) }) {
			t.Fatalf("the old master %d does not end", master)
		}
	})
}

// traffic runs a change in traffic of new and of kept connections. No request
// may fail.
func (l *lab) traffic(what, addr string, change func()) {
	l.t.Helper()
	pages := testSite(l.t).pick("64b", "1k", "64k")
	closing := l.startLoad(loadSpec{Addr: addr, Objects: pages, Conns: 8, Close: true})
	keeping := l.startLoad(loadSpec{Addr: addr, Objects: pages, Conns: 8})
	time.Sleep(500 * time.Millisecond)
	change()
	time.Sleep(500 * time.Millisecond)
	l.checkLoad(what+", new connections", closing.stop())
	l.checkLoad(what+", kept connections", keeping.stop())
}

func disjoint(a, b []int) bool {
	for _, x := range a {
		for _, y := range b {
			if x == y {
				return false
			}
		}
	}
	return true
}

func readPid(path string) int {
	content, _ := os.ReadFile(path)
	n, _ := strconv.Atoi(strings.TrimSpace(string(content)))
	return n
}

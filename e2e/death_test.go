// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// script is the command line of a Python program of the suite.
func script(l *lab, name string, args ...string) []string {
	l.t.Helper()
	path, err := filepath.Abs(filepath.Join("testdata", name))
	if err != nil {
		l.t.Fatal(err)
	}
	return append([]string{"/usr/bin/python3", "-u", path}, args...)
}

// waitLog waits until a program has written text n times.
func (p *proc) waitLog(text string, n int, timeout time.Duration) {
	p.t.Helper()
	if !poll(timeout, func() bool { return strings.Count(p.logText(), text) >= n }) {
		p.t.Fatalf("%s did not say %q %d times in %v:\n%s\n%s", p.name, text, n, timeout, tail(p.logText(), 40), stacks(p.pid()))
	}
}

// TestKillProxy kills a proxy in mid-transfer: its clients see it as with the
// kernel, its port is free at once, and its neighbour notices nothing.
func TestKillProxy(t *testing.T) {
	l := newLab(t)
	victim := l.nginx(nginxConf{Name: "victim", Workers: 2, Sendfile: true})
	neighbour := servedAddr + ":81"
	l.nginx(nginxConf{Name: "neighbour", Listen: neighbour, Sendfile: true})
	traffic := l.startLoad(loadSpec{Addr: neighbour, Objects: testSite(t).pick("64b", "64k"), Conns: 4})

	c := l.beginDownload("100m")
	victim.kill9()
	killed := time.Now()
	n, err := io.Copy(io.Discard, c)
	if err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the client of the killed proxy got %v, not the end or a reset", err)
	}
	if took := time.Since(killed); took > 10*time.Second || n >= 100<<20 {
		t.Errorf("the client got %d more bytes and the end (%v) only after %v", n, err, took)
	}
	l.nginx(nginxConf{Name: "successor", Workers: 2, Sendfile: true})
	l.runLoad("successor on the same port", loadSpec{Addr: servedAddr + ":80", Objects: testSite(t).pick("1k"), Conns: 8, Requests: 200})
	l.checkLoad("neighbour", traffic.stop())
	l.checkGone(victim)
}

// beginDownload asks the nginx on port 80 for a body and reads its beginning.
func (l *lab) beginDownload(name string) net.Conn {
	l.t.Helper()
	c, err := l.client.DialContext(l.t.Context(), "tcp", servedAddr+":80")
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	fmt.Fprintf(c, "GET /%s HTTP/1.1\r\nHost: e2e\r\n\r\n", name)
	if _, err := io.ReadFull(c, make([]byte, 64<<10)); err != nil {
		l.t.Fatalf("begin the download: %v", err)
	}
	return c
}

// TestKillReader kills a program that has not read what its peer sent: the
// peer is reset.
func TestKillReader(t *testing.T) {
	l := newLab(t)
	p := l.app("holder", script(l, "hold.py", "accept", servedAddr, "7200")...)
	p.waitLog("listening", 1, 30*time.Second)
	c, err := l.client.DialContext(t.Context(), "tcp", servedAddr+":7200")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Write(make([]byte, 30000)); err != nil {
		t.Fatal(err)
	}
	p.waitLog("accepted", 1, 30*time.Second)
	time.Sleep(100 * time.Millisecond)
	p.kill9()
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the peer of the killed program got %v, not a reset", err)
	}
	l.checkGone(p)
}

// TestLastWords has programs send, and exit before the DPU can have taken all
// of it: it arrives.
func TestLastWords(t *testing.T) {
	const runs, conns, size = 20, 16, 60000
	l := newLab(t)
	s := l.scripted()
	for i := range runs {
		out, err := l.runApp("talker", 20*time.Second, script(l, "last_words.py", backendAddr, "7000", strconv.Itoa(conns), strconv.Itoa(size))...)
		if err != nil {
			t.Fatalf("run %d: %v\n%s", i, err, out)
		}
	}
	if !poll(30*time.Second, func() bool { return s.tally.Load() == runs*conns*size }) {
		t.Errorf("%d of %d bytes arrived", s.tally.Load(), runs*conns*size)
	}
}

// TestKillWorker kills one of two workers in traffic. Only its own connections
// may suffer; those it had not accepted go to the other.
func TestKillWorker(t *testing.T) {
	const conns = 8
	l := newLab(t)
	master := l.nginx(nginxConf{Workers: 2, Sendfile: true})
	addr, pages := servedAddr+":80", testSite(t).pick("64b", "1k", "64k")
	traffic := l.startLoad(loadSpec{Addr: addr, Objects: pages, Conns: conns, Close: true})
	time.Sleep(300 * time.Millisecond)
	const kills = 3
	for range kills {
		before := children(master.pid())
		kill(t, before[0], syscall.SIGKILL)
		if !poll(30*time.Second, func() bool {
			now := children(master.pid())
			return len(now) == 2 && disjoint(before[:1], now)
		}) {
			t.Fatalf("the master did not replace its worker: %v", children(master.pid()))
		}
		time.Sleep(300 * time.Millisecond)
	}
	r := traffic.stop()
	t.Logf("across %d kills: %v", kills, r)
	if r.failed() > kills*conns {
		t.Errorf("%d requests failed, only %d connections can have been the killed workers'", r.failed(), kills*conns)
	}
	if r.Failures["connect: connection refused"] > 0 {
		t.Error("the port was closed meanwhile")
	}
	l.runLoad("afterwards", loadSpec{Addr: addr, Objects: pages, Conns: conns, Requests: 500, Close: true})
	// nginx reports the signal as an alert; that is no fault here.
	master.expect = "exited on signal 9"
}

// TestKillDPU kills dpud. Its connections are reset, nobody hangs, and the
// listeners come back with it.
func TestKillDPU(t *testing.T) {
	l := newLab(t)
	l.needOffload()
	l.scripted()
	server := l.nginx(nginxConf{Workers: 2, Sendfile: true})
	l.download(servedAddr+":80", "1m")
	waiter := l.appWith("waiter", spawnOptions{dies: true}, script(l, "hold.py", "wait", backendAddr, "7000")...)
	waiter.waitLog("waiting", 1, 30*time.Second)
	time.Sleep(200 * time.Millisecond)
	sent := l.stats(l.conf.hostdAdmin).GetHost().GetBytesTx()

	l.dpud.kill9()
	for _, line := range []string{"recv: ECONNRESET", "epoll: HUP ERR ECONNRESET", "poll: HUP ERR ECONNRESET"} {
		waiter.waitLog(line, 1, 30*time.Second)
	}
	l.hostd.waitLog("DPU", 1, 30*time.Second)
	if server.ended() {
		t.Fatal("nginx ended with the DPU")
	}
	for round := range 2 {
		if round > 0 {
			l.dpud.kill9()
		}
		l.startDPUD()
		if !poll(30*time.Second, func() bool {
			_, err := l.clientRun(5*time.Second, "curl", "-sSf", "--max-time", "2", "-o", "/dev/null", "http://"+servedAddr+"/1k")
			return err == nil
		}) {
			t.Fatal("nginx does not serve after the DPU came back")
		}
		// What was counted in the lost session is not counted again in the next.
		if now := l.stats(l.conf.hostdAdmin).GetHost().GetBytesTx(); round == 0 && (now < sent || now > sent+sent/2) {
			t.Errorf("%d bytes sent before the loss, %d after a few answers more", sent, now)
		}
		l.runLoad("with the DPU back", loadSpec{Addr: servedAddr + ":80", Objects: testSite(t).pick("1k", "64k"), Conns: 16, Requests: 1000})
		if n := len(children(server.pid())); n != 2 {
			t.Errorf("nginx has %d workers", n)
		}
	}
}

// TestKillHostd kills hostd. What runs goes on, what is new waits for the next
// hostd, which takes the old over.
func TestKillHostd(t *testing.T) {
	l := newLab(t)
	l.needOffload()
	server := l.nginx(nginxConf{Workers: 2, Sendfile: true})
	addr, pages := servedAddr+":80", testSite(t).pick("64b", "1k", "64k")
	traffic := l.startLoad(loadSpec{Addr: addr, Objects: pages, Conns: 4, Close: true})
	time.Sleep(300 * time.Millisecond)
	l.hostd.kill9()
	time.Sleep(time.Second)
	l.startHostd()
	time.Sleep(time.Second)
	l.checkLoad("across the restart of hostd", traffic.stop())

	l.nginx(nginxConf{Name: "second", Listen: servedAddr + ":81"})
	l.download(servedAddr+":81", "1m")
	before := children(server.pid())
	server.signal(syscall.SIGHUP)
	if !poll(30*time.Second, func() bool { now := children(server.pid()); return len(now) == 2 && disjoint(before, now) }) {
		t.Fatalf("reload after the restart of hostd: workers %v, then %v", before, children(server.pid()))
	}
	l.runLoad("new workers under the new hostd", loadSpec{Addr: addr, Objects: pages, Conns: 8, Requests: 500, Close: true})
}

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"testing"
	"time"
)

// TestTwoShards spreads the flows over two stacks.
func TestTwoShards(t *testing.T) {
	l := newShardedLab(t, 2)
	l.backendNginx()
	pages := testSite(t).pick("64b", "1k", "64k", "1m")
	l.run("nginx", func(l *lab) {
		l.nginx(nginxConf{Workers: 2, Sendfile: true})
		testPages(l)
		l.download(servedAddr+":80", "100m")
		l.upload(servedAddr+":80", "100m")
	})
	l.run("haproxy", func(l *lab) {
		l.haproxy(haproxyConf{Threads: 2, Master: true})
		l.runLoad("http", loadSpec{Addr: haHTTP, Objects: pages, Conns: 32, Requests: 1000})
		l.runLoad("tcp", loadSpec{Addr: haTCP, Objects: pages, Conns: 32, Requests: 1000, Close: true})
		l.traffic("http", haHTTP, func() {})
		l.checkServers()
	})
	l.run("redis", func(l *lab) {
		l.redis()
		l.redisBenchmark(16, 20000)
	})
	if l.mode == modeOffload {
		for _, shard := range l.stats(l.conf.dpudAdmin).GetDpu().GetNetstack() {
			if shard.GetName() == "tcp_retransmits" {
				t.Logf("%s: %d", shard.GetName(), shard.GetValue())
			}
		}
	}
	l.checkOffloaded()
}

// TestWildcardListen has nginx listen the way Debian's own configuration does:
// on every address, of both families.
func TestWildcardListen(t *testing.T) {
	l := newLab(t)
	for _, tt := range []struct{ name, listen, more string }{
		{"any IPv4", "80", ""},
		{"both families", "80", "listen [::]:80;"},
		{"one socket for both", "[::]:80 ipv6only=off", ""},
	} {
		l.run(tt.name, func(l *lab) {
			p := l.app("nginx", l.writeNginx(nginxConf{Workers: 2, Sendfile: true, Listen: tt.listen, Server: tt.more})...)
			l.waitListening(p, servedAddr+":80")
			l.download(servedAddr+":80", "1m")
			l.runLoad("load", loadSpec{Addr: servedAddr + ":80", Objects: testSite(l.t).pick("1k", "64k"), Conns: 8, Requests: 400, Close: true})
			p.kill9()
			l.checkGone(p)
		})
	}
	l.checkOffloaded()
}

// TestMixedDescriptors has proxies wait for the DPU's sockets and the kernel's
// in one place: the back end is on the host's own loopback. Neither may starve.
func TestMixedDescriptors(t *testing.T) {
	l := newLab(t)
	onHost := &lab{t: t, mode: modeKernel, dir: l.dir, host: l.host, client: l.host}
	onHost.kernelNginx(l.host, nginxConf{Name: "local", Listen: "127.0.0.1:8000"})
	local, remote := "127.0.0.1:8000", backendAddr+":80"
	l.backendNginx()
	pages := testSite(t).pick("64b", "1k", "64k", "1m")
	both := func(l *lab, addr string) {
		l.runLoad("load", loadSpec{Addr: addr, Objects: pages, Conns: 32, Requests: 1000})
		l.runLoad("load, close", loadSpec{Addr: addr, Objects: pages, Conns: 32, Requests: 500, Close: true})
	}
	l.run("nginx", func(l *lab) {
		l.nginx(nginxConf{Server: fmt.Sprintf(`
    location /local/ { proxy_pass http://%s/; }
    location /remote/ { proxy_pass http://%s/; }`, local, remote)})
		for _, where := range []string{"local", "remote"} {
			spec := loadSpec{Addr: servedAddr + ":80", Conns: 32, Requests: 500}
			for _, o := range pages {
				o.Name = where + "/" + o.Name
				spec.Objects = append(spec.Objects, o)
			}
			l.runLoad(where, spec)
		}
	})
	l.run("haproxy", func(l *lab) {
		l.haproxy(haproxyConf{Threads: 2, Backend: local})
		both(l, haHTTP)
		both(l, haTCP)
		l.checkServers()
	})
	l.checkOffloaded()
}

// TestBriefOutage takes the wire away for a moment, at the client's end and at
// the DPU's: transfers go on where they were.
func TestBriefOutage(t *testing.T) {
	l := newLab(t)
	l.nginx(nginxConf{Workers: 2, Sendfile: true})
	spec := loadSpec{Addr: servedAddr + ":80", Objects: testSite(t).pick("1m", "64k"), Conns: 8}
	for _, port := range []string{"client", "served"} {
		l.run(port, func(l *lab) {
			g := l.startLoad(spec)
			time.Sleep(500 * time.Millisecond)
			l.sw.LinkDown(port)
			time.Sleep(time.Second)
			l.sw.LinkUp(port)
			time.Sleep(2 * time.Second)
			r := g.stop()
			l.checkLoad("across an outage of a second", r)
			if r.MaxGap < 900*time.Millisecond {
				l.t.Errorf("there was no outage: the longest gap was %v", r.MaxGap)
			}
			after := spec
			after.Requests = 200
			l.runLoad("afterwards", after)
		})
	}
}

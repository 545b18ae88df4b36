// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os"
	"testing"
	"time"
)

var allSizes = []string{"1b", "1k", "64k", "1m", "100m"}

// TestIntegrity moves bodies of every size in both directions and compares
// their hashes.
func TestIntegrity(t *testing.T) {
	l := newLab(t)
	l.sink(l.backend, backendAddr+":8080")
	l.backendNginx()
	l.run("nginx", func(l *lab) {
		l.nginx(nginxConf{Sendfile: true})
		for _, name := range allSizes {
			l.run("download "+name, func(l *lab) { l.download(servedAddr+":80", name) })
			l.run("upload "+name, func(l *lab) { l.upload(servedAddr+":80", name) })
		}
	})
	l.run("nginx without sendfile", func(l *lab) {
		l.nginx(nginxConf{})
		l.run("download 100m", func(l *lab) { l.download(servedAddr+":80", "100m") })
	})
	for _, port := range []struct{ mode, addr string }{{"http", haHTTP}, {"tcp", haTCP}} {
		l.run("haproxy down/mode="+port.mode, func(l *lab) {
			l.haproxy(haproxyConf{Threads: 2})
			for _, name := range allSizes {
				l.run(name, func(l *lab) { l.download(port.addr, name) })
			}
		})
		l.run("haproxy up/mode="+port.mode, func(l *lab) {
			l.haproxy(haproxyConf{Threads: 2, Backend: backendAddr + ":8080"})
			for _, name := range allSizes {
				l.run(name, func(l *lab) {
					l.runLoad("upload", loadSpec{Addr: port.addr, Objects: testSite(l.t).pick(name), Conns: 1, Requests: 1, Upload: true, Timeout: 60 * time.Second})
				})
			}
		})
	}
	l.checkOffloaded()
}

// download fetches one body with curl.
func (l *lab) download(addr, name string) {
	l.t.Helper()
	o := testSite(l.t).objects[name]
	got := l.path("got")
	defer os.Remove(got)
	begin := time.Now()
	l.mustClientRun(70*time.Second, "curl", "-sSf", "--max-time", "60", "-o", got, "http://"+addr+"/"+name)
	took := time.Since(begin)
	if sum := fileSum(l.t, got); sum != o.Sum {
		l.t.Errorf("/%s has sum %s, not %s", name, sum, o.Sum)
	}
	if o.Size >= 1<<20 {
		l.t.Logf("download of %s: %.1f MB/s", name, float64(o.Size)/1e6/took.Seconds())
	}
}

// upload puts one body with curl to the nginx under test, which writes it to a
// file.
func (l *lab) upload(addr, name string) {
	l.t.Helper()
	o := testSite(l.t).objects[name]
	stored := l.path("nginx-up/" + name)
	defer os.Remove(stored)
	begin := time.Now()
	l.mustClientRun(70*time.Second, "curl", "-sSf", "--max-time", "60", "-H", "Expect:", "-T", o.File, "http://"+addr+"/up/"+name)
	took := time.Since(begin)
	if sum := fileSum(l.t, stored); sum != o.Sum {
		l.t.Errorf("stored %s has sum %s, not %s", name, sum, o.Sum)
	}
	if o.Size >= 1<<20 {
		l.t.Logf("upload of %s: %.1f MB/s", name, float64(o.Size)/1e6/took.Seconds())
	}
}

// TestSlowReader holds invariant 7: who reads slowly slows nobody else.
func TestSlowReader(t *testing.T) {
	l := newLab(t)
	l.sink(l.backend, backendAddr+":8080")
	site := testSite(t)
	slow := site.objects["100m"]
	slow.Name = "slow/100m"
	tests := []struct {
		name  string
		start func(l *lab)
		addr  string
		fast  loadSpec
		slow  loadSpec
	}{
		// The client is slow: bytes pile up in the DPU, on the way out.
		{"client reads slowly", func(l *lab) { l.nginx(nginxConf{Sendfile: true}) }, servedAddr + ":80",
			loadSpec{Objects: site.pick("64k"), Conns: 8},
			loadSpec{Objects: site.pick("100m"), Conns: 8, Rate: slowRate}},
		// The back end is slow: HAProxy stops to read, and bytes pile up in its
		// rings, on the way in.
		{"application reads slowly", func(l *lab) { l.haproxy(haproxyConf{Threads: 1, Backend: backendAddr + ":8080"}) }, haTCP,
			loadSpec{Objects: site.pick("64k"), Conns: 8, Upload: true},
			loadSpec{Objects: []object{slow}, Conns: 8, Upload: true}},
	}
	for _, tt := range tests {
		l.run(tt.name, func(l *lab) {
			tt.start(l)
			tt.fast.Addr, tt.slow.Addr = tt.addr, tt.addr
			plausible(l.t, func(time.Duration) error {
				alone := l.during(2*time.Second, tt.fast)
				l.checkLoad("alone", alone)

				slow := l.startLoad(tt.slow)
				defer slow.p.kill9()
				time.Sleep(time.Second) // all buffers on the way are full then
				beside := l.during(2*time.Second, tt.fast)
				l.checkLoad("beside slow readers", beside)
				if beside.rate() < alone.rate()/2 {
					return fmt.Errorf("%.0f requests/s alone, only %.0f/s beside slow readers", alone.rate(), beside.rate())
				}
				return nil
			})
			l.runLoad("after the slow were killed", loadSpec{Addr: tt.addr, Objects: tt.fast.Objects, Upload: tt.fast.Upload, Conns: 8, Requests: 200})
		})
	}
}

// TestSlowReaderWhole fetches a whole megabyte at 100 KB/s.
func TestSlowReaderWhole(t *testing.T) {
	l := newLab(t)
	l.nginx(nginxConf{Sendfile: true, Workers: 2})
	slow := l.startLoad(loadSpec{Addr: servedAddr + ":80", Objects: testSite(t).pick("1m"), Conns: 8, Requests: 8, Rate: slowRate})
	fast := l.startLoad(loadSpec{Addr: servedAddr + ":80", Objects: testSite(t).pick("1k", "64k", "1m"), Conns: 4})
	r := slow.result()
	l.checkLoad("slow", r)
	l.checkLoad("at speed meanwhile", fast.stop())
	if want := float64(1<<20) / slowRate; r.Seconds < want*0.8 {
		t.Errorf("1 MB took %.1f s, not %.1f s: the reader was not slow", r.Seconds, want)
	}
}

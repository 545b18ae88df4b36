// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"

	adminv1 "pno/proto/pno/admin/v1"
)

// TestSplice lets HAProxy move data by splice: through pipes on the host, or
// not across to the host at all.
func TestSplice(t *testing.T) {
	l := newLab(t)
	l.backendNginx()
	p := l.haproxy(haproxyConf{Threads: 2, Splice: true, Master: true})
	pages := testSite(t).pick("64b", "1k", "64k", "1m")
	for _, addr := range []string{haHTTP, haTCP} {
		before := l.spliced()
		l.runLoad("load", loadSpec{Addr: addr, Objects: pages, Conns: 16, Requests: 400})
		l.runLoad("new connections", loadSpec{Addr: addr, Objects: pages, Conns: 16, Requests: 200, Close: true})
		l.runLoad("clients that hang up", loadSpec{Addr: addr, Objects: pages, Conns: 8, Requests: 100, Hangup: true})
		l.runLoad("slow clients", loadSpec{Addr: addr, Objects: testSite(t).pick("1m"), Conns: 8, Requests: 8, Rate: 2 << 20})
		l.download(addr, "100m")
		if l.mode == modeKernel {
			continue
		}
		after := l.spliced()
		if n := after.stayed - before.stayed; n < 100<<20 {
			t.Errorf("%s: %d bytes were spliced on the DPU", addr, n)
		}
	}
	t.Run("aborts", func(t *testing.T) {
		for range 20 {
			c := l.beginDownload("100m")
			_ = c.Close()
		}
	})
	t.Run("reload", func(t *testing.T) {
		g := l.startLoad(loadSpec{Addr: haTCP, Objects: pages, Conns: 8, Close: true})
		time.Sleep(300 * time.Millisecond)
		l.reloadHAProxy(p)
		l.checkLoad("reload", g.stop())
	})
	l.waitServersUp()
	l.checkServers()
	p.ending = true
	p.signal(syscall.SIGTERM)
	p.wait(10 * time.Second)
}

// TestSpliceStays counts that what one connection splices does not cross to the
// host, and has the DPU die in the middle.
func TestSpliceStays(t *testing.T) {
	l := newLab(t)
	l.needOffload()
	l.backendNginx()
	p := l.haproxy(haproxyConf{Threads: 1, Splice: true})
	before := l.spliced()
	l.download(haTCP, "100m")
	after := l.spliced()
	// The first few splices show that the program relays.
	const body, first = 100 << 20, 8 << 20
	if stayed, crossed := after.stayed-before.stayed, after.crossed-before.crossed; stayed < body-first || crossed > first {
		t.Errorf("of a body of %d bytes %d stayed on the DPU and %d crossed", body, stayed, crossed)
	}
	c := l.beginDownload("100m")
	l.dpud.kill9()
	_ = c.Close()
	l.hostd.waitLog("DPU lost", 1, 10*time.Second)
	l.startDPUD()
	// From its jail it cannot attach again, but it must end as it should.
	p.ending = true
	p.signal(syscall.SIGTERM)
	p.wait(10 * time.Second)
	l.haproxy(haproxyConf{Threads: 1, Splice: true})
	l.download(haTCP, "100m")
	if n := l.spliced().stayed; n < body-first {
		t.Errorf("with the DPU back %d bytes of %d stayed on it", n, body)
	}
}

// TestSplicePairs counts that HAProxy's connection to the server is on the shard
// of the client's, or else what is spliced would cross to the host.
func TestSplicePairs(t *testing.T) {
	l := newShardedLab(t, 2)
	l.needOffload()
	l.backendNginx()
	l.haproxy(haproxyConf{Threads: 1, Splice: true})
	before, first := l.accepts(), l.spliced()
	// A health check may come between an accept and its connect, and the first
	// few splices of each connection show that the program relays.
	const downloads, checks, body = 32, 3, 16 << 20
	stayed := 0
	for range downloads {
		n := l.spliced().stayed
		l.download(haTCP, "16m")
		if l.spliced().stayed-n >= body/2 {
			stayed++
		}
	}
	t.Logf("%d of %d bodies stayed on the DPU, %d KiB crossed", stayed, downloads, (l.spliced().crossed-first.crossed)>>10)
	if stayed < downloads-checks {
		t.Errorf("of %d bodies only %d stayed on the DPU", downloads, stayed)
	}
	for shard, n := range l.accepts() {
		if n == before[shard] {
			t.Errorf("shard %d had none of %d clients", shard, downloads)
		}
	}
}

// accepts is how many clients each shard had.
func (l *lab) accepts() map[uint32]uint64 {
	l.t.Helper()
	n := make(map[uint32]uint64)
	if err := l.admin(l.conf.dpudAdmin, func(ctx context.Context, c grpc.ClientConnInterface) error {
		r, err := adminv1.NewDpuServiceClient(c).ListShards(ctx, &adminv1.ListShardsRequest{})
		for _, s := range r.GetShards() {
			n[s.GetShard()] = s.GetAccepts()
		}
		return err
	}); err != nil {
		l.t.Fatalf("shards of dpud: %v", err)
	}
	return n
}

// spliced is what the DPU has counted: bytes that went from socket to socket on
// it, and bytes that went to the host or came from it.
func (l *lab) spliced() (n struct{ stayed, crossed uint64 }) {
	if l.mode == modeKernel {
		return n
	}
	d := l.stats(l.conf.dpudAdmin).GetDpu()
	n.stayed, n.crossed = d.GetChannel().GetBytesSpliced(), d.GetBytesRx()+d.GetBytesTx()
	return n
}

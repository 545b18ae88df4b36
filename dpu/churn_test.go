// SPDX-License-Identifier: Apache-2.0

package dpu_test

import (
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"pno/dpu/netstack"
)

// Many short connections leave nothing behind.
func TestChurn(t *testing.T) {
	r := newRig(t, rigOptions{tcp: netstack.TCP{TimeWait: 50 * time.Millisecond}})
	h := newHost(t, r.agent, testLayout(1))
	l := h.listen(0, dpuAddr+":80")
	h.do(func() { h.serve = func(s *hsock) { s.autoEcho() } })
	l.subscribe(1024)
	const total, at = 3000, 50
	var wg sync.WaitGroup
	for range at {
		wg.Go(func() {
			b := make([]byte, 64)
			for range total / at {
				c := r.remote.dial(t, dpuAddr+":80")
				_, _ = c.Write(b[:10])
				_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
				if n, err := io.ReadFull(c, b[:10]); err != nil {
					t.Errorf("read %d: %v", n, err)
				}
				_ = c.Close()
			}
		})
	}
	wg.Wait()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); {
		st := r.d.Stats()
		if st.Sockets.Open == 1 && st.Sockets.Unaccepted == 0 {
			if st.Sockets.Accepted != total {
				t.Errorf("%d accepted, want %d", st.Sockets.Accepted, total)
			}
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("left: %+v", r.d.Stats().Sockets)
}

// Idle connections cost memory within bounds, and no time.
func TestManyIdleConnections(t *testing.T) {
	n := 2000
	if testing.Short() {
		n = 200
	}
	r := newRig(t, rigOptions{})
	h := newHost(t, r.agent, testLayout(1))
	l := h.listen(0, dpuAddr+":80")
	h.do(func() { h.serve = func(*hsock) {} })
	l.subscribe(4096)
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	conns := make([]net.Conn, n)
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := w; i < n; i += 8 {
				conns[i] = r.remote.dial(t, dpuAddr+":80")
			}
		})
	}
	wg.Wait()
	h.until("all accepted", func() bool { return h.served == n })
	// Both ends live in this process, so a connection counts twice.
	per := (heap() - before) / uint64(n) / 2
	t.Logf("%d bytes an idle connection", per)
	if per > 16<<10 {
		t.Errorf("%d bytes an idle connection, want at most 16 KiB", per)
	}
	for _, c := range conns {
		_ = c.Close()
	}
}

func cpuTime() time.Duration {
	var ru syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &ru)
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

// A DPU with sessions and connections, but without traffic, sleeps.
func TestIdleCostsNothing(t *testing.T) {
	r := newRig(t, rigOptions{shards: 2})
	h := newHost(t, r.agent, testLayout(2))
	h.listen(0, dpuAddr+":80")
	h.listen(1, dpuAddr+":80")
	r.remote.dial(t, dpuAddr+":80")
	h.do(func() { h.sleep = true })
	time.Sleep(100 * time.Millisecond)
	const long, limit = time.Second, 20 * time.Millisecond
	var used time.Duration
	for range 5 { // the runtime may collect garbage, but not in every second
		loops := r.d.Stats().Shards[0].Loops
		before := cpuTime()
		time.Sleep(long)
		used = cpuTime() - before
		t.Logf("%v of CPU in %v, %d turns", used, long, r.d.Stats().Shards[0].Loops-loops)
		if used <= limit || os.Getenv("PNO_TEST_LOG") != "" {
			return
		}
	}
	t.Errorf("%v of CPU in an idle second, want at most %v", used, limit)
}

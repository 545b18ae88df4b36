// SPDX-License-Identifier: Apache-2.0

package dpu_test

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"pno/dpu/netstack"
	"pno/dpu/rss"
	"pno/offload"
)

// Every way of spreading the device's queues over the shards.
func TestShards(t *testing.T) {
	for _, c := range []struct {
		name string
		o    rigOptions
	}{
		{"a queue each", rigOptions{shards: 2}},
		{"a queue each, the device's own hash", rigOptions{shards: 2, noSteer: true}},
		{"one queue", rigOptions{shards: 2, queues: 1}},
		{"three shards, two queues", rigOptions{shards: 3, queues: 2, noSteer: true}},
		{"more queues than shards", rigOptions{shards: 2, queues: 4, noSteer: true}},
		{"a core each", rigOptions{shards: 2, cores: usableCores(t, 2)}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, c.o)
			h := newHost(t, r.agent, testLayout(c.o.shards))
			listeners := make([]*hsock, c.o.shards)
			for i := range listeners {
				listeners[i] = h.listen(i, dpuAddr+":80")
			}
			go echo(r.remote.listen(t, remoteAddr+":9000"))
			table := rss.New(c.o.shards, netstack.PortLow, netstack.PortHigh)
			const flows = 24
			var conns []net.Conn
			for range flows {
				conns = append(conns, r.remote.dial(t, dpuAddr+":80"))
			}
			var wg sync.WaitGroup
			total := 0
			for i, l := range listeners {
				want := 0
				for _, conn := range conns {
					peer := netip.MustParseAddrPort(conn.LocalAddr().String())
					if table.Shard(netip.MustParseAddrPort(dpuAddr+":80"), peer) == i {
						want++
					}
				}
				for range want {
					s := l.accept()
					total++
					wg.Go(func() {
						b, err := s.readN(1000)
						if err == nil {
							err = s.write(b)
						}
						if err != nil {
							t.Error(err)
						}
					})
				}
			}
			if total != flows {
				t.Fatalf("%d flows of %d", total, flows)
			}
			for i, conn := range conns {
				wg.Go(func() {
					data, got := pattern(uint64(i), 1000), make([]byte, 1000)
					_, _ = conn.Write(data)
					_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
					if _, err := io.ReadFull(conn, got); err != nil || string(got) != string(data) {
						t.Errorf("flow %d: %v", i, err)
					}
				})
			}
			wg.Wait()
			for i := range c.o.shards {
				for range 8 {
					s := h.connect(i, remoteAddr+":9000", "")
					if s.errno != 0 {
						t.Fatalf("connect on shard %d: errno %d", i, s.errno)
					}
					if err := s.write([]byte("there and back")); err != nil {
						t.Fatal(err)
					}
					if b, err := s.readN(14); err != nil || string(b) != "there and back" {
						t.Fatalf("%q, %v", b, err)
					}
					s.close(0)
				}
			}
			for _, core := range c.o.cores {
				if !stays(t, core) {
					t.Errorf("no thread stays on core %d", core)
				}
			}
		})
	}
}

// Segments of a connection that another shard's queue receives go through the stack
// together as well as those of the shard's own.
func TestHandedOverFramesAreMerged(t *testing.T) {
	r := newRig(t, rigOptions{shards: 2, queues: 1})
	h := newHost(t, r.agent, testLayout(2))
	l := r.remote.listen(t, remoteAddr+":9000")
	s := h.connect(1, remoteAddr+":9000", "") // shard 0 has the queue
	conn := acceptOne(t, l)
	body := pattern(3, 4<<20)
	go func() { _, _ = conn.Write(body) }()
	got, err := s.readN(len(body))
	if err != nil || string(got) != string(body) {
		t.Fatalf("%d bytes, or they differ: %v", len(got), err)
	}
	shards := r.d.Stats().Shards
	frames, handed, merged := shards[0].RxFrames, shards[0].RxHanded, r.counter("tcp_segments_merged")
	if own := len(body) / 1500; handed < uint64(own) || merged < 100 {
		t.Errorf("of %d frames %d were handed over, of these %d merged", frames, handed, merged)
	}
}

func TestExplicitPortIsRedirected(t *testing.T) {
	r := newRig(t, rigOptions{shards: 2})
	h := newHost(t, r.agent, testLayout(2))
	go echo(r.remote.listen(t, remoteAddr+":9000"))
	table := rss.New(2, netstack.PortLow, netstack.PortHigh)
	for port := 5000; port < 5016; port++ {
		local := fmt.Sprintf("%s:%d", dpuAddr, port)
		want := table.Shard(netip.MustParseAddrPort(local), netip.MustParseAddrPort(remoteAddr+":9000"))
		s := h.connect(1-want, remoteAddr+":9000", local)
		if s.errno != uint32(offload.ErrnoRedirect|want) {
			t.Fatalf("port %d: errno %#x, want redirect to %d", port, s.errno, want)
		}
		s = h.connect(want, remoteAddr+":9000", local)
		if s.errno != 0 {
			t.Fatalf("port %d: errno %d", port, s.errno)
		}
		_ = s.write([]byte("x"))
		if _, err := s.readN(1); err != nil {
			t.Fatal(err)
		}
		s.close(0)
	}
}

// Requests and answers one at a time, with a host that sleeps for each: any
// wake-up lost on either side shows as a timeout of the host's sleep.
func TestNoLostWakeUp(t *testing.T) {
	r := newRig(t, rigOptions{shards: 2})
	h := newHost(t, r.agent, testLayout(2))
	go echo(r.remote.listen(t, remoteAddr+":9000"))
	var socks []*hsock
	for i := range 4 {
		s := h.connect(i%2, remoteAddr+":9000", "")
		if s.errno != 0 {
			t.Fatalf("errno %d", s.errno)
		}
		socks = append(socks, s)
	}
	h.do(func() { h.sleep = true })
	end := time.Now().Add(2 * time.Second)
	rounds := make([]int, len(socks))
	finished := make(chan struct{}, len(socks))
	for i, s := range socks {
		var send func()
		// Everything happens in the host's goroutine: each answer sends the
		// next request, so that nothing but the interrupt wakes it.
		send = func() {
			s.consumed += uint64(len(s.rx))
			s.rx = nil
			if rounds[i]++; time.Now().After(end) {
				finished <- struct{}{}
				return
			}
			s.emit(offload.OpSend, 0, uint32(s.tx), uint32(s.consumed), []byte("ping"))
			s.tx += 4
		}
		h.do(func() {
			s.onData = func() {
				if len(s.rx) >= 4 {
					send()
				}
			}
			send()
		})
	}
	for range socks {
		<-finished
	}
	h.do(func() {
		t.Logf("rounds %v, interrupts %d", rounds, h.stats.interrupts)
		if h.stats.timeouts > 0 {
			t.Errorf("%d wake-ups lost", h.stats.timeouts)
		}
	})
}

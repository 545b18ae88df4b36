// SPDX-License-Identifier: Apache-2.0

package shim_test

import (
	"io"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Once a connection is in its stride, nothing is allocated to read and write.
func TestReadAndWriteDoNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	f := startFake(t)
	var rx uint32
	c, err := f.run(f.echo(&rx))
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 512)
	round := func() {
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, b); err != nil {
			t.Fatal(err)
		}
	}
	for range 100 {
		round()
	}
	// The fake's own turns are counted, too; it allocates nothing either.
	if n := leastAllocs(500, round); n != 0 {
		t.Errorf("%v allocations a round trip", n)
	}
	deadlines := func() {
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		round()
	}
	deadlines()
	if n := leastAllocs(200, deadlines); n != 0 {
		t.Errorf("%v allocations a round trip with a deadline", n)
	}
}

// leastAllocs is testing.AllocsPerRun where others allocate now and then: hostd
// is in this process, and slow rounds give it time.
func leastAllocs(runs int, f func()) float64 {
	least := testing.AllocsPerRun(runs, f)
	for range 4 {
		if least == 0 {
			break
		}
		least = min(least, testing.AllocsPerRun(runs, f))
	}
	return least
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// Connections and listeners that are closed leave nothing: no goroutine, no
// descriptor, no socket at the DPU.
func TestNothingIsLeft(t *testing.T) {
	sim := startSim(t, 2)
	round := func() {
		l := listen(t, "127.0.0.1:0")
		served := make(chan struct{})
		go func() { echo(l); close(served) }()
		for range 20 {
			c := dial(t, l.Addr().String())
			_ = c.SetDeadline(time.Now().Add(10 * time.Second))
			_, _ = c.Write([]byte("x"))
			if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
				t.Error(err)
			}
			_ = c.Close()
		}
		_ = l.Close()
		<-served
	}
	round()
	time.Sleep(100 * time.Millisecond)
	files, goroutines := openFiles(t), runtime.NumGoroutine()
	for range 3 {
		round()
	}
	settled := func() bool {
		r := sim.Report().Host.Sessions
		return openFiles(t) <= files && runtime.NumGoroutine() <= goroutines && len(r) == 1 && r[0].Sockets == 0
	}
	for end := time.Now().Add(10 * time.Second); !settled(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d files, %d goroutines, then %d, %d; sessions %+v", files, goroutines,
				openFiles(t), runtime.NumGoroutine(), sim.Report().Host.Sessions)
		}
	}
}

// A session that was lost goes with the last that refers to it.
func TestLostSessionIsFreed(t *testing.T) {
	p := startParts(t)
	c, d := pair(t)
	ping(t, c, d)
	_ = c.Close()
	_ = d.Close()
	before := mappings(t)
	p.stopDPU()
	for end := time.Now().Add(20 * time.Second); mappings(t) >= before; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d session memories are mapped, %d before the loss", mappings(t), before)
		}
		runtime.GC()
	}
	p.startDPU()
}

func mappings(t *testing.T) int {
	t.Helper()
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(maps), "/memfd:pno-session")
}

// An idle process with idle connections does nothing at all.
func TestIdleSleeps(t *testing.T) {
	sim := startSim(t, 2)
	l := listen(t, "127.0.0.1:0")
	for range 50 {
		a, b := pairOn(t, l)
		go func() { _, _ = a.Read(make([]byte, 1)) }() // asleep
		_ = b
	}
	var wakes, sent uint64
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		sleeps, records := counter(sim, "sleeps"), counter(sim, "records_tx")
		time.Sleep(500 * time.Millisecond)
		wakes, sent = counter(sim, "sleeps")-sleeps, counter(sim, "records_tx")-records
		if wakes <= 2 && sent == 0 {
			return
		}
	}
	t.Errorf("%d wake-ups and %d records while nothing happened", wakes, sent)
}

// BenchmarkRoundTrip compares one connection's 64-byte round trip over the
// DPU's loopback with the kernel's.
func BenchmarkRoundTrip(b *testing.B) {
	for _, size := range []int{64, 4096} {
		both(b, size, func(b *testing.B, c net.Conn, buf []byte) {
			for b.Loop() {
				if _, err := c.Write(buf); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(c, buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func both(b *testing.B, size int, run func(*testing.B, net.Conn, []byte)) {
	for name, listenOn := range map[string]func() net.Listener{
		"kernel": func() net.Listener {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			return l
		},
		"shim": func() net.Listener { return listen(b, "127.0.0.1:0") },
	} {
		b.Run(name+"/"+strconv.Itoa(size), func(b *testing.B) {
			startSim(b, 1)
			l := listenOn()
			go echo(l)
			defer func() { _ = l.Close() }()
			var c net.Conn
			var err error
			if name == "shim" {
				c = dial(b, l.Addr().String())
			} else if c, err = net.Dial("tcp", l.Addr().String()); err != nil {
				b.Fatal(err)
			}
			defer func() { _ = c.Close() }()
			b.ReportAllocs()
			b.SetBytes(int64(size))
			run(b, c, make([]byte, size))
		})
	}
}

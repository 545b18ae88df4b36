// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"encoding/binary"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pno/dpu/link"
	"pno/dpu/link/linktest"
)

func open(cfg Config) linktest.Open {
	return func(t *testing.T) (link.Device, link.Device) {
		a, b := pair(t, cfg)
		return a, b
	}
}

func pair(t testing.TB, cfg Config) (*Device, *Device) {
	t.Helper()
	a, b, err := Pair(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = a.Close()
		_ = b.Close()
	})
	return a, b
}

func TestConformance(t *testing.T) {
	slow := Faults{Delay: 100 * time.Microsecond}
	for _, c := range []struct {
		name string
		cfg  Config
	}{
		{"OneQueue", Config{}},
		{"FourQueues", Config{Queues: [2]int{4, 4}}},
		{"UnequalQueues", Config{Queues: [2]int{1, 3}}},
		{"Jumbo", Config{MTU: 9000, Limit: 256}},
		{"Delayed", Config{Faults: [2]Faults{slow, slow}}},
	} {
		t.Run(c.name, func(t *testing.T) { linktest.Run(t, open(c.cfg)) })
	}
}

func TestBadConfig(t *testing.T) {
	for _, c := range []struct {
		name string
		cfg  Config
	}{
		{"small MTU", Config{MTU: 100}},
		{"large MTU", Config{MTU: 70000}},
		{"few frames", Config{Limit: 3}},
		{"negative queues", Config{Queues: [2]int{-1, 1}}},
		{"loss over one", Config{Faults: [2]Faults{{Loss: 1.5}, {}}}},
		{"negative delay", Config{Faults: [2]Faults{{}, {Delay: -1}}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, _, err := Pair(c.cfg); err == nil {
				t.Error("accepted")
			}
		})
	}
}

// numbered sends frames that carry their number, and returns how many fit.
func numbered(t testing.TB, q link.Queue, from, count int) int {
	t.Helper()
	for i := range count {
		buf := q.TxAlloc()
		if buf == nil {
			return i
		}
		clear(buf[:64])
		binary.BigEndian.PutUint32(buf[20:], uint32(from+i))
		q.TxCommit(64)
	}
	return count
}

// collect receives numbers until none has come for quiet.
func collect(t testing.TB, q link.Queue, quiet time.Duration) []uint32 {
	t.Helper()
	var got []uint32
	frames := make([][]byte, 64)
	fds := []unix.PollFd{{Fd: int32(q.FD()), Events: unix.POLLIN}}
	for {
		n, err := q.Recv(frames)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range frames[:n] {
			got = append(got, binary.BigEndian.Uint32(f[20:]))
		}
		q.Release()
		if n > 0 {
			continue
		}
		if n, _ := unix.Poll(fds, int(quiet.Milliseconds())); n == 0 {
			return got
		}
	}
}

func exchange(t *testing.T, cfg Config, count int) ([]uint32, *Device) {
	t.Helper()
	a, b := pair(t, cfg)
	q := a.Queues()[0]
	for sent := 0; sent < count; sent += 50 {
		numbered(t, q, sent, 50)
		if err := q.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	return collect(t, b.Queues()[0], 50*time.Millisecond), a
}

func TestLossDependsOnSeedAlone(t *testing.T) {
	lossy := func(seed uint64) []uint32 {
		got, dev := exchange(t, Config{Seed: seed, Faults: [2]Faults{{Loss: 0.1}, {}}}, 2000)
		if lost := dev.Stats().TxDropped; int(lost)+len(got) != 2000 {
			t.Errorf("%d received and %d dropped of 2000", len(got), lost)
		}
		return got
	}
	first, second, other := lossy(7), lossy(7), lossy(8)
	if len(first) < 1700 || len(first) > 1900 {
		t.Errorf("%d of 2000 arrived at 10%% loss", len(first))
	}
	if !equal(first, second) {
		t.Error("one seed, two outcomes")
	}
	if equal(first, other) {
		t.Error("two seeds, one outcome")
	}
}

func equal(a, b []uint32) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

func TestDuplicates(t *testing.T) {
	got, _ := exchange(t, Config{Faults: [2]Faults{{Duplicate: 0.2}, {}}}, 1000)
	if len(got) < 1150 || len(got) > 1250 {
		t.Errorf("%d frames of 1000 with 20%% duplicated", len(got))
	}
	seen := make(map[uint32]int)
	for _, n := range got {
		seen[n]++
	}
	if len(seen) != 1000 {
		t.Errorf("%d distinct frames of 1000", len(seen))
	}
}

func TestReorderKeepsEveryFrame(t *testing.T) {
	got, _ := exchange(t, Config{Faults: [2]Faults{{Reorder: 0.1, ReorderHold: 5 * time.Millisecond}, {}}}, 1000)
	if len(got) != 1000 {
		t.Fatalf("%d of 1000 arrived", len(got))
	}
	late, highest := 0, uint32(0)
	for _, n := range got {
		if n < highest {
			late++
		}
		highest = max(highest, n)
	}
	if late < 50 || late > 150 {
		t.Errorf("%d frames of 1000 came late, want about 100", late)
	}
}

func TestJitterKeepsOrder(t *testing.T) {
	got, _ := exchange(t, Config{Faults: [2]Faults{{Delay: time.Millisecond, Jitter: 3 * time.Millisecond}, {}}}, 500)
	if len(got) != 500 {
		t.Fatalf("%d of 500 arrived", len(got))
	}
	for i, n := range got {
		if n != uint32(i) {
			t.Fatalf("frame %d came at place %d", n, i)
		}
	}
}

func TestDelayMakesReadableWhenDue(t *testing.T) {
	const delay = 30 * time.Millisecond
	a, b := pair(t, Config{Faults: [2]Faults{{Delay: delay}, {}}})
	tx, rx := a.Queues()[0], b.Queues()[0]
	frames := make([][]byte, 4)
	if n, _ := rx.Recv(frames); n != 0 {
		t.Fatal("received before sending")
	}
	start := time.Now()
	numbered(t, tx, 0, 1)
	if err := tx.Flush(); err != nil {
		t.Fatal(err)
	}
	if n, _ := rx.Recv(frames); n != 0 {
		t.Error("received at once")
	}
	fds := []unix.PollFd{{Fd: int32(rx.FD()), Events: unix.POLLIN}}
	if n, _ := unix.Poll(fds, 5000); n != 1 {
		t.Fatal("never readable")
	}
	if took := time.Since(start); took < delay {
		t.Errorf("readable after %v, want %v", took, delay)
	}
	if n, _ := rx.Recv(frames); n != 1 {
		t.Errorf("readable, but %d frames", n)
	}
}

func TestScheduleArithmetic(t *testing.T) {
	const ms = int64(time.Millisecond)
	for _, c := range []struct {
		name    string
		faults  Faults
		size    int
		at      []int64 // sending times
		reorder []bool
		want    []int64
	}{
		{"delay", Faults{Delay: 20 * time.Millisecond}, 1000, []int64{0, ms}, nil, []int64{20 * ms, 21 * ms}},
		{"bandwidth spaces a burst", Faults{Bandwidth: 8_000_000}, 1000, []int64{0, 0, 0}, nil, []int64{ms, 2 * ms, 3 * ms}},
		{"idle wire is not saved up", Faults{Bandwidth: 8_000_000}, 1000, []int64{0, 10 * ms}, nil, []int64{ms, 11 * ms}},
		{"bandwidth and delay", Faults{Bandwidth: 8_000_000, Delay: 5 * time.Millisecond}, 2000, []int64{0, 0}, nil, []int64{7 * ms, 9 * ms}},
		{"reordered", Faults{Reorder: 1, Delay: time.Millisecond}, 100, []int64{0, 0}, []bool{true, false}, []int64{2 * ms, ms}},
		{"own hold", Faults{Reorder: 1, ReorderHold: 7 * time.Millisecond}, 100, []int64{0, 0}, []bool{true, false}, []int64{7 * ms, 0}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := &direction{faults: c.faults}
			for i, at := range c.at {
				f := &frame{n: c.size}
				w.scheduleAt(at, f, c.reorder != nil && c.reorder[i], 0)
				if f.due != c.want[i] {
					t.Errorf("frame %d arrives at %d, want %d", i, f.due, c.want[i])
				}
			}
		})
	}
}

func TestPushBackAndWake(t *testing.T) {
	a, b := pair(t, Config{Limit: 256})
	tx, rx := a.Queues()[0], b.Queues()[0]
	if n := numbered(t, tx, 0, 300); n != 256 {
		t.Fatalf("%d frames fit, want 256", n)
	}
	if err := tx.Flush(); err != nil {
		t.Fatal(err)
	}
	frames := make([][]byte, 64)
	if n, _ := tx.Recv(frames); n != 0 {
		t.Fatal("the sender received something")
	}
	fds := []unix.PollFd{{Fd: int32(tx.FD()), Events: unix.POLLIN}}
	if n, _ := unix.Poll(fds, 0); n != 0 {
		t.Fatal("sender woken too early")
	}
	if n, _ := rx.Recv(frames[:8]); n != 8 {
		t.Fatal("nothing arrived")
	}
	rx.Release()
	if n, _ := unix.Poll(fds, 1000); n != 1 {
		t.Error("sender not woken by Release")
	}
	if n := numbered(t, tx, 256, 100); n != 8 {
		t.Errorf("%d frames fit after 8 were released", n)
	}
}

func TestDropTail(t *testing.T) {
	a, b := pair(t, Config{Limit: 256, DropTail: true})
	tx, rx := a.Queues()[0], b.Queues()[0]
	if n := numbered(t, tx, 0, 300); n != 300 {
		t.Fatalf("%d frames accepted, want all", n)
	}
	if err := tx.Flush(); err != nil {
		t.Fatal(err)
	}
	if got := collect(t, rx, time.Millisecond); len(got) != 256 || got[255] != 255 {
		t.Errorf("%d frames arrived, want the first 256", len(got))
	}
	if d := a.Stats().TxDropped; d != 44 {
		t.Errorf("%d dropped, want 44", d)
	}
}

func TestSteering(t *testing.T) {
	a, b := pair(t, Config{
		Queues: [2]int{1, 4},
		Steer:  [2]func([]byte) int{1: func(f []byte) int { return int(f[23]) }},
	})
	numbered(t, a.Queues()[0], 0, 40)
	if err := a.Queues()[0].Flush(); err != nil {
		t.Fatal(err)
	}
	for i, q := range b.Queues() {
		for _, n := range collect(t, q, time.Millisecond) {
			if int(n%4) != i {
				t.Errorf("frame %d arrived on queue %d", n, i)
			}
		}
	}
}

func TestFlowHash(t *testing.T) {
	v4 := func(src, dst byte, sport, dport uint16) []byte {
		f := make([]byte, 60)
		binary.BigEndian.PutUint16(f[12:], 0x0800)
		f[14], f[23], f[29], f[33] = 0x45, 6, src, dst
		binary.BigEndian.PutUint16(f[34:], sport)
		binary.BigEndian.PutUint16(f[36:], dport)
		return f
	}
	if FlowHash(v4(1, 2, 1000, 80)) != FlowHash(v4(2, 1, 80, 1000)) {
		t.Error("the two directions of a flow differ")
	}
	seen := make(map[int]bool)
	for port := range uint16(64) {
		seen[FlowHash(v4(1, 2, 1000+port, 80))%4] = true
	}
	if len(seen) != 4 {
		t.Errorf("64 flows reach %d of 4 queues", len(seen))
	}
	for _, short := range [][]byte{nil, make([]byte, 14), v4(1, 2, 3, 4)[:20], v4(1, 2, 3, 4)[:35]} {
		if h := FlowHash(short); h != 0 {
			t.Errorf("frame of %d bytes hashes to %d", len(short), h)
		}
	}
}

func FuzzFlowHash(f *testing.F) {
	f.Add(make([]byte, 60))
	f.Fuzz(func(t *testing.T, frame []byte) {
		if FlowHash(frame) < 0 {
			t.Error("negative hash")
		}
	})
}

func BenchmarkWire(b *testing.B) {
	x, y := pair(b, Config{})
	tx, rx := x.Queues()[0], y.Queues()[0]
	frames := make([][]byte, 64)
	b.ReportAllocs()
	for b.Loop() {
		numbered(b, tx, 0, 32)
		_ = tx.Flush()
		for got := 0; got < 32; {
			n, _ := rx.Recv(frames)
			got += n
			rx.Release()
		}
	}
}

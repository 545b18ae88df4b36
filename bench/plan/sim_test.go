// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"encoding/binary"
	"io"
	"math"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"pno/shim"
	"pno/sim/edge"
	"pno/sim/pcie"
	"pno/sim/topology"
)

const (
	within  = 0.15
	clients = 64
)

// simulation is a server behind a simulated DPU, with clients that ask it for
// the sizes of a mix, one request at a time.
type simulation struct {
	t       *testing.T
	address string
	request int // bytes
	mix     atomic.Pointer[[]int]
	done    atomic.Int64
	bytes   atomic.Int64 // of answers, also of those that are not whole yet
}

// Write throws away what a client got.
func (s *simulation) Write(b []byte) (int, error) {
	s.bytes.Add(int64(len(b)))
	return len(b), nil
}

func simulate(t *testing.T, profile pcie.Profile, request int) *simulation {
	t.Helper()
	t.Setenv("TMPDIR", t.TempDir())
	sim, err := topology.Start(topology.Config{PCIe: profile, Publish: []edge.Mapping{{
		Outside: netip.MustParseAddrPort("127.0.0.1:0"), Inside: netip.MustParseAddrPort("198.18.0.2:80"),
	}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sim.Stop)
	for _, kv := range sim.Env() {
		if path, ok := strings.CutPrefix(kv, "PNO_HOSTD="); ok {
			t.Setenv("PNO_HOSTD", path)
		}
	}
	l, err := shim.Listen("tcp", "198.18.0.2:80")
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := l.(*shim.Listener); !ok {
		t.Fatalf("a %T: it is not offloaded", l)
	}
	s := &simulation{t: t, address: sim.Published()[0].String(), request: request}
	s.mix.Store(&[]int{1})
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { answer(c, request) })
		}
	})
	for i := range clients {
		wg.Go(func() { s.ask(i, stop) })
	}
	t.Cleanup(func() {
		close(stop)
		_ = l.Close()
		wg.Wait()
	})
	return s
}

// answer sends as many bytes as it is asked for.
func answer(c net.Conn, size int) {
	defer c.Close()
	body := make([]byte, 1<<20)
	for request := make([]byte, size); ; {
		if _, err := io.ReadFull(c, request); err != nil {
			return
		}
		if _, err := c.Write(body[:binary.LittleEndian.Uint32(request)]); err != nil {
			return
		}
	}
}

func (s *simulation) ask(first int, stop <-chan struct{}) {
	c, err := net.DialTimeout("tcp", s.address, 20*time.Second)
	if err != nil {
		s.t.Error(err)
		return
	}
	defer c.Close()
	request := make([]byte, s.request)
	for n := first; ; n++ {
		select {
		case <-stop:
			return
		default:
		}
		mix := *s.mix.Load()
		size := mix[n%len(mix)]
		binary.LittleEndian.PutUint32(request, uint32(size))
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		if _, err := c.Write(request); err != nil {
			s.t.Errorf("ask for %d bytes: %v", size, err)
			return
		}
		if _, err := io.CopyN(s, c, int64(size)); err != nil {
			s.t.Errorf("get %d bytes: %v", size, err)
			return
		}
		s.done.Add(1)
	}
}

// serve makes a mix what clients ask for: ten requests, spread over the sizes
// by weight, the large ones not in a row.
func (s *simulation) serve(m Mix) {
	var sizes []int
	for _, sh := range m {
		for range int(math.Round(10 * sh.Weight / m.sum())) {
			sizes = append(sizes, sh.Bytes)
		}
	}
	mixed := make([]int, len(sizes))
	for i := range sizes {
		mixed[i] = sizes[i*3%len(sizes)] // 3 and 10 have no factor in common
	}
	s.mix.Store(&mixed)
}

// count waits for n requests, and tells how long they took and their CPU time.
func (s *simulation) count(n int64) (took, cpu time.Duration) {
	s.t.Helper()
	before, begun, used := s.done.Load(), time.Now(), cpuTime(s.t)
	for s.done.Load() < before+n {
		if s.t.Failed() || time.Since(begun) > time.Minute {
			s.t.Fatalf("%d requests of %d after %v", s.done.Load()-before, n, time.Since(begun))
		}
		time.Sleep(time.Millisecond)
	}
	got := s.done.Load() - before
	per := func(d time.Duration) time.Duration { return d / time.Duration(got) }
	return per(time.Since(begun)), per(cpuTime(s.t) - used)
}

func cpuTime(t *testing.T) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func off(got, want float64) float64 { return math.Abs(got/want - 1) }

func mix(t *testing.T, s string) Mix {
	t.Helper()
	m, err := ParseMix(s)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// rate is how many requests of a mix are answered in a second, by the bytes that
// come in two: of whole answers, which differ in size, there are too few.
func (s *simulation) rate(m Mix) float64 {
	before, begun := s.bytes.Load(), time.Now()
	time.Sleep(2 * time.Second)
	perSecond := float64(s.bytes.Load()-before) / time.Since(begun).Seconds()
	return perSecond / m.Mean(func(n int) float64 { return float64(n) })
}

// The link is so slow that it is used up long before anything else, also on a
// machine that has little time for us. A stall makes a run slower than the link is,
// and the next one faster, if a client has it behind it; so the fastest run has to
// be fast enough, and the median not too fast.
func TestPCIeLimit(t *testing.T) {
	for _, tc := range []struct {
		name, mix string
		request   int
		slow      func(*pcie.Profile)
		first     string
	}{
		{"host to DPU", "64:5,64k:3,256k:2", 16, func(p *pcie.Profile) { p.ReadBandwidth = 3 << 20 }, "PCIe, host to DPU"},
		{"DPU to host", "64:5,4k:5", 50000, func(p *pcie.Profile) { p.WriteBandwidth = 3 << 20 }, "PCIe, DPU to host"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := pcie.Profile{Name: "slow", ReadLatency: time.Millisecond, WriteLatency: 100 * time.Microsecond,
				ReadBandwidth: 1 << 40, WriteBandwidth: 1 << 40, Outstanding: 64}
			tc.slow(&p)
			m := mix(t, tc.mix)
			want, err := Make(Card{Name: "simulated", Cores: 1, Speed: 1, PCIe: p}, Host{1, 1},
				Costs{Host: Cost{Request: 1}, DPU: Cost{Request: 1}}, Work{Mix: m, Request: tc.request})
			if err != nil {
				t.Fatal(err)
			}
			if want.First != tc.first {
				t.Fatalf("%s is used up first: %+v", want.First, want.Resources)
			}
			s := simulate(t, p, tc.request)
			s.serve(m)
			s.count(clients) // what was asked for before
			var rates []float64
			for len(rates) < 15 {
				rates = append(rates, s.rate(m))
				slices.Sort(rates)
				fastest, median := rates[len(rates)-1], rates[len(rates)/2]
				if len(rates) >= 3 && fastest >= want.Rate*(1-within) && median <= want.Rate*(1+within) {
					t.Logf("%.1f requests/s, predicted %.1f", rates, want.Rate)
					return
				}
			}
			t.Errorf("%.1f requests/s, predicted %.1f", rates, want.Rate)
		})
	}
}

// What the parts of a mix cost tells what the mix costs. Everything is in this
// process, so its CPU time stands for the DPU's. What else the machine does
// changes the cost of all three, so they are measured in turn and compared by
// medians.
func TestCPULimit(t *testing.T) {
	small, large, both := mix(t, "64"), mix(t, "64k"), mix(t, "64:5,8k:3,32k:2")
	s := simulate(t, pcie.Profile{}, 16)
	measure := func(m Mix) float64 {
		s.serve(m)
		s.count(clients)
		_, cpu := s.count(400)
		return float64(cpu.Nanoseconds()) / 1e3
	}
	var ratios []float64
	for range 24 {
		a, b, got := measure(small), measure(large), measure(both)
		costs, err := Fit([]Point{{Bytes: small[0].Bytes, Host: 1, DPU: a}, {Bytes: large[0].Bytes, Host: 1, DPU: b}}, "this test")
		if err != nil {
			t.Fatal(err)
		}
		want, err := Make(Card{Name: "simulated", Cores: 1, Speed: 1}, Host{1, 1}, costs, Work{Mix: both, Request: 16})
		if err != nil {
			t.Fatal(err)
		}
		if want.First != "DPU cores" {
			t.Fatalf("%s is used up first", want.First)
		}
		ratios = append(ratios, got*want.Rate/1e6)
		slices.Sort(ratios)
		if median := ratios[len(ratios)/2]; len(ratios) >= 5 && len(ratios)%2 == 1 && off(median, 1) <= within {
			t.Logf("%.2f of the predicted CPU time, a median of %d: %.2f", median, len(ratios), ratios)
			return
		}
	}
	t.Errorf("measured to predicted CPU time: %.2f", ratios)
}

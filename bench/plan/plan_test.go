// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"math"
	"slices"
	"strings"
	"testing"

	"pno/sim/pcie"
)

func TestParseMix(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want Mix
		bad  bool
	}{
		{"64", Mix{{64, 1}}, false},
		{"64:70%, 16k:25%,1M:5%", Mix{{64, 70}, {16 << 10, 25}, {1 << 20, 5}}, false},
		{"0:0.5,1g:0.5", Mix{{0, 0.5}, {1 << 30, 0.5}}, false},
		{"", nil, true},
		{"k", nil, true},
		{"-1", nil, true},
		{"64:", nil, true},
		{"64:0", nil, true},
		{"64:NaN", nil, true},
		{"64:Inf", nil, true},
		{"64:1e308,64:1e308", nil, true},
		{"64,,64", nil, true},
		{"2048g", nil, true},
		{"99999999999999999999", nil, true},
	} {
		got, err := ParseMix(tc.in)
		if (err != nil) != tc.bad || !slices.Equal(got, tc.want) {
			t.Errorf("%q: %v, %v; want %v", tc.in, got, err, tc.want)
		}
	}
}

func TestMean(t *testing.T) {
	m := Mix{{100, 3}, {500, 1}}
	if got := m.Mean(func(n int) float64 { return float64(n) }); got != 200 {
		t.Errorf("mean %v, want 200", got)
	}
}

func TestFit(t *testing.T) {
	truth := Cost{Request: 2, Byte: 0.001, Conn: 10}
	at := func(bytes int, cl bool) Point {
		conns := 0.0
		if cl {
			conns = 1
		}
		return Point{bytes, cl, truth.of(float64(bytes), conns), 3 * truth.of(float64(bytes), conns)}
	}
	near := func(a, b Cost) bool {
		d := func(x, y float64) float64 { return math.Abs(x-y) / y }
		return d(a.Request, b.Request) < 1e-9 && d(a.Byte, b.Byte) < 1e-9 && d(a.Conn, b.Conn) < 1e-9
	}
	c, err := Fit([]Point{at(64, false), at(1<<20, false), at(16<<10, false), at(64, true)}, "truth")
	if err != nil || !near(c.Host, truth) || !near(c.DPU, Cost{6, 0.003, 30}) || c.Source.Byte != "truth" {
		t.Errorf("%+v, %v", c, err)
	}
	for name, points := range map[string][]Point{
		"none":       nil,
		"one size":   {at(64, false), at(64, false), at(1<<20, true)},
		"zero":       {at(64, false), {Bytes: 1 << 20, Host: 0, DPU: 1}},
		"goes below": {{64, false, 1, 1}, {128, false, 1000, 1000}},
	} {
		if c, err := Fit(points, ""); err == nil {
			t.Errorf("%s: %+v", name, c)
		}
	}
}

func TestSizes(t *testing.T) {
	for _, tc := range []struct {
		n                     int
		record, frames, acked float64
	}{
		{1, 32, 91, 0},
		{16, 32, 106, 0},
		{17, 48, 107, 0},
		{1448, 1472, 1538, 0},
		{1449, 1472, 1449 + 180, 0},
		{2896, 2912, 2896 + 180, 90},
		{32768, 32784, 32768 + 23*90, 11 * 90},
		{32769, 32784 + 32, 32769 + 23*90, 11 * 90},
	} {
		if r, f, a := recordBytes(tc.n), frames(tc.n), acks(tc.n); r != tc.record || f != tc.frames || a != tc.acked {
			t.Errorf("%d bytes: %v on the ring, %v on the wire, acknowledged by %v; want %v, %v, %v",
				tc.n, r, f, a, tc.record, tc.frames, tc.acked)
		}
	}
}

// Every resource is the first to go for somebody.
func TestFirst(t *testing.T) {
	card := Card{Name: "test", Cores: 5, Reserved: 1, Speed: 0.5, Port: 1e9,
		PCIe: pcie.Profile{ReadLatency: 1000, Outstanding: 10, ReadBandwidth: 1e9, WriteBandwidth: 1e9}}
	host, costs := Host{2, 1}, Costs{Host: Cost{1, 0, 5}, DPU: Cost{2, 0, 8}}
	for _, tc := range []struct {
		first string
		rate  float64
		card  func(*Card)
		host  Host
		work  Work
	}{
		{"host cores", 1e6, func(c *Card) { c.Port = 1e12; c.Speed = 9 }, Host{1, 1}, Work{Mix{{1, 1}}, 0, 1, 0}},
		{"host cores", 2e6 / 6, func(c *Card) { c.Port = 1e12; c.Speed = 9 }, Host{2, 1}, Work{Mix{{1, 1}}, 0, 1, 1}},
		{"DPU cores", 1e6, func(c *Card) { c.Port = 1e12 }, Host{9, 1}, Work{Mix{{1, 1}}, 0, 1, 0}},
		{"DPU cores", 2e6 / 4, func(c *Card) { c.Port = 1e12 }, Host{9, 1}, Work{Mix{{1, 1}}, 0, 1, 4}},
		{"PCIe, host to DPU", 1e6 / (32784 + 32), func(c *Card) { c.PCIe.ReadBandwidth = 1e6 }, host, Work{Mix{{32768, 1}}, 0, 1, 0}},
		{"PCIe, DPU to host", 1e6 / (1024 + 24), func(c *Card) { c.PCIe.WriteBandwidth = 1e6 }, host, Work{Mix{{1, 1}}, 0, 1008, 0}},
		{"DMA operations", 4 * 10 / 1e-3 / 4, func(c *Card) { c.PCIe.ReadLatency = 1e6 }, host, Work{Mix{{1, 1}}, 0, 1, 0}},
		{"wire, out", 1e9 / 8 / (14480 + 900), func(*Card) {}, host, Work{Mix{{14380, 1}}, 100, 64, 0}},
		{"wire, in", 1e9 / 8 / (14480 + 900), func(*Card) {}, host, Work{Mix{{64, 1}}, 0, 14480, 0}},
	} {
		c := card
		tc.card(&c)
		p, err := Make(c, tc.host, costs, tc.work)
		if err != nil {
			t.Fatal(err)
		}
		if p.First != tc.first || math.Abs(p.Rate/tc.rate-1) > 1e-9 {
			t.Errorf("%s at %v, want %s at %v: %+v", p.First, p.Rate, tc.first, tc.rate, p.Resources)
		}
		for i, r := range p.Resources {
			if r.Used > 1 || i == 0 && r.Used != 1 {
				t.Errorf("%s: %v of it used", r.Name, r.Used)
			}
		}
	}
}

func TestRefused(t *testing.T) {
	card, host, work, costs := Cards[0], Host{1, 1}, Work{Mix{{64, 1}}, 0, 1, 0}, measured(t)
	for name, f := range map[string]func() (*Plan, error){
		"no core":    func() (*Plan, error) { return Make(card, Host{0, 1}, costs, work) },
		"no shard":   func() (*Plan, error) { return Make(card.WithCores(1, 0), host, costs, work) },
		"slow card":  func() (*Plan, error) { return Make(card.WithCores(0, -1), host, costs, work) },
		"no mix":     func() (*Plan, error) { return Make(card, host, costs, Work{Request: 1}) },
		"no request": func() (*Plan, error) { return Make(card, host, costs, Work{Mix: work.Mix}) },
		"no cost":    func() (*Plan, error) { return Make(card, host, Costs{}, work) },
	} {
		if p, err := f(); err == nil {
			t.Errorf("%s: %+v", name, p)
		}
	}
}

// Whoever reads a plan can see what it rests on.
func TestSources(t *testing.T) {
	for _, c := range Cards {
		p, err := Make(c, Host{8, 1}, measured(t), Work{Mix{{64, 1}}, 250, 100, 0})
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range p.Constants {
			if strings.TrimSpace(k.Source) == "" {
				t.Errorf("%s: %s has no source", c.Name, k.Name)
			}
		}
	}
}

func FuzzParseMix(f *testing.F) {
	f.Add("64:70%,16k:25%,1m:5%")
	costs := measured(f)
	f.Fuzz(func(t *testing.T, s string) {
		m, err := ParseMix(s)
		if err != nil {
			return
		}
		p, err := Make(Cards[0], Host{1, 1}, costs, Work{Mix: m, Request: 1})
		if err != nil || !(p.Rate > 0) || math.IsInf(p.Rate, 0) {
			t.Errorf("%q: %+v, %v", s, p, err)
		}
	})
}

func measured(t testing.TB) Costs {
	t.Helper()
	c, err := Measured()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// The newest measurement is of use, and what is not is refused.
func TestMeasured(t *testing.T) {
	c := measured(t)
	for _, s := range []Cost{c.Host, c.DPU} {
		if s.Request <= 0 || s.Byte <= 0 || s.Conn <= 0 {
			t.Errorf("a request, a byte or a connection costs nothing: %+v", s)
		}
	}
	for _, table := range []string{
		"", "{}", `{"rows": [{"benchmark": "conns", "close": true}]}`,
		`{"sweep": [{"size": 64, "offload": {"host_process_us_per_req": 1, "dpu_cpu_us_per_req": 5}},
			{"size": 65536, "offload": {"host_process_us_per_req": 9, "dpu_cpu_us_per_req": 70}}]}`,
	} {
		if c, err := fromTable([]byte(table)); err == nil {
			t.Errorf("%q: %+v", table, c)
		}
	}
}

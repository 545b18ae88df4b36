// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Memory is what idle connections and an idle system cost.
type Memory struct {
	Benchmark string      `json:"benchmark"`
	Conns     int         `json:"conns"`
	Kernel    MemoryUse   `json:"kernel"`
	Offload   MemoryUse   `json:"offload"`
	Steps     []MemoryUse `json:"offload_steps"` // as connections are added
	Targets   []Target    `json:"targets"`       // of the offload
	Ratio     float64     `json:"ratio"`         // of host memory, kernel ÷ offload; the kernel's own is not in it
	Machine   Machine     `json:"machine"`
}

// Target is what a figure is to be at most or, if Least is set, at least.
type Target struct {
	What     string  `json:"what"`
	Unit     string  `json:"unit"`
	Measured float64 `json:"measured"`
	Most     float64 `json:"most,omitempty"`
	Least    float64 `json:"least,omitempty"`
	Met      bool    `json:"met"`
}

// String is a line for a table.
func (t Target) String() string {
	bound, met := fmt.Sprintf("at most %.4g", t.Most), "met"
	if t.Least > 0 {
		bound = fmt.Sprintf("at least %.4g", t.Least)
	}
	if !t.Met {
		met = "MISSED"
	}
	return fmt.Sprintf("%s: %.4g, target %s %s: %s", t.What, t.Measured, bound, t.Unit, met)
}

// noCPU is what rounds to 0 per cent: the timers of a Go runtime are there.
const noCPU = 0.5

// targets compares u with what is aimed at.
func (u MemoryUse) targets() []Target {
	out := []Target{
		{What: "host memory of a connection, with the rings", Unit: "bytes", Measured: u.WithRings, Most: 1 << 10},
		{What: "DPU memory of a connection", Unit: "bytes", Measured: u.DPUBytes, Most: 16 << 10},
		{What: "host CPU of an idle system", Unit: "%", Measured: u.HostIdle, Most: noCPU},
		{What: "DPU CPU of an idle system", Unit: "%", Measured: u.DPUIdle, Most: 2},
		{What: "connections that do not answer", Unit: "connections", Measured: float64(u.Conns - u.Answered)},
	}
	for i := range out {
		out[i].Met = out[i].Measured <= out[i].Most
	}
	return out
}

// MemoryUse is resident memory for each connection, over what the processes
// took with none, and the CPU that all of them use while nothing happens, in
// per cent of a core. The kernel's own memory for its sockets is not in it. The
// rings are told apart: they come with a process, and become resident as they
// are gone round for the first time, by however many connections; WithRings
// counts them, too, both sides' share.
type MemoryUse struct {
	Conns     int     `json:"conns"`
	Answered  int     `json:"answered"` // of them, once they had been idle; in the last step
	HostBytes float64 `json:"host_bytes_per_conn"`
	WithRings float64 `json:"host_and_ring_bytes_per_conn"`
	DPUBytes  float64 `json:"dpu_bytes_per_conn"`
	Rings     int64   `json:"ring_bytes"` // resident, of all processes
	HostIdle  float64 `json:"host_idle_cpu_percent"`
	DPUIdle   float64 `json:"dpu_idle_cpu_percent"`
}

const (
	holdEach    = 12_500 // connections of one process, on either side: descriptors are limited
	memorySteps = 4
	mostIdle    = 1_000_000 // 81 workers
)

// MeasureMemory opens conns connections to nginx, spread over several workers,
// and leaves them alone.
func MeasureMemory(ctx context.Context, o Options, conns int) (*Memory, error) {
	if conns < memorySteps || conns > mostIdle {
		return nil, fmt.Errorf("%d connections are too few or too many: from %d to %d can be held", conns, memorySteps, mostIdle)
	}
	workers := (conns+holdEach-1)/holdEach + 1 // the kernel does not spread them evenly
	sc := scenario{
		Comparison: Comparison{Benchmark: "memory", Conns: conns},
		serve:      func(ctx context.Context, s *site) error { return s.serveIdle(ctx, workers) },
		load:       func(s *site) generator { return s.web(Web{Conns: 1}) },
	}
	m := &Memory{Benchmark: "memory", Conns: conns, Machine: machine()}
	err := sc.on(ctx, o, sc, func(subjects []*subject) error {
		for _, s := range subjects {
			steps, err := s.hold(ctx, o, conns)
			if err != nil {
				return fmt.Errorf("hold connections to %s: %w\n%s", s.name, err, s.t.log(s.name))
			}
			last := steps[len(steps)-1]
			if s.name == "kernel" {
				m.Kernel = last
			} else {
				m.Offload, m.Steps, m.Targets = last, steps, last.targets()
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if m.Offload.WithRings > 0 {
		m.Ratio = m.Kernel.WithRings / m.Offload.WithRings
	}
	return m, nil
}

// serveIdle starts nginx with listeners of each worker's own.
func (s *site) serveIdle(ctx context.Context, workers int) error {
	conf, err := s.t.write(s.name+".conf", fmt.Sprintf(`worker_processes %d; daemon off; user root; error_log stderr; pid %s/%s.pid;
events { worker_connections 19000; }
http {
  access_log off; keepalive_timeout 3600s; client_header_timeout 3600s;
  client_body_temp_path %[2]s/t1; proxy_temp_path %[2]s/t2; fastcgi_temp_path %[2]s/t3;
  uwsgi_temp_path %[2]s/t4; scgi_temp_path %[2]s/t5;
  server { listen %[4]s:80 reuseport backlog=4096; location / { return 200 "x"; } }
}
`, workers, s.t.dir, s.name, s.hostAddr))
	if err != nil {
		return err
	}
	return s.serve(ctx, 80, "nginx", "-c", conf)
}

// hold opens connections in steps and measures after each.
func (s *subject) hold(ctx context.Context, o Options, conns int) ([]MemoryUse, error) {
	time.Sleep(500 * time.Millisecond) // what starting leaves behind settles
	before, err := s.resident()
	if err != nil {
		return nil, err
	}
	var steps []MemoryUse
	var holders []*holder
	held := 0
	for step := 1; step <= memorySteps; step++ {
		for want := conns * step / memorySteps; held < want; {
			h, err := s.holdSome(ctx, len(holders), min(holdEach, want-held))
			if err != nil {
				return nil, err
			}
			holders = append(holders, h)
			held += h.count
		}
		use, err := s.idle(o.Duration)
		if err != nil {
			return nil, err
		}
		now, err := s.resident()
		if err != nil {
			return nil, err
		}
		use.Conns, use.Rings = held, now.rings
		use.HostBytes = float64(now.host-before.host) / float64(held)
		use.WithRings = use.HostBytes + float64(now.rings-before.rings)/float64(held)
		use.DPUBytes = float64(now.dpu-before.dpu) / float64(held)
		o.Log("%s, %d connections: %.0f bytes each on the host (%.0f with the rings), %.0f on the DPU; rings %.1f MB; idle %.2f %% and %.2f %% of a core",
			s.name, held, use.HostBytes, use.WithRings, use.DPUBytes, float64(use.Rings)/1e6, use.HostIdle, use.DPUIdle)
		steps = append(steps, use)
	}
	for _, h := range holders {
		if err := h.ask(ctx); err != nil {
			return nil, err
		}
		steps[len(steps)-1].Answered += h.count
	}
	o.Log("%s: all %d connections have answered once more", s.name, held)
	return steps, nil
}

// idle measures CPU time while nothing happens, for d.
func (s *subject) idle(d time.Duration) (u MemoryUse, err error) {
	time.Sleep(200 * time.Millisecond) // the last answers are on their way
	if err := s.probe.start(); err != nil {
		return u, err
	}
	time.Sleep(d)
	host, _, dpu, err := s.probe.stop()
	u.HostIdle, u.DPUIdle = 100*host.Seconds()/d.Seconds(), 100*dpu.Seconds()/d.Seconds()
	return u, err
}

// resident is memory of all processes of a site.
type resident struct {
	host  int64 // of the programs and hostd, without rings
	dpu   int64
	rings int64 // the session memory that both sides have mapped
}

func (s *subject) resident() (r resident, err error) {
	for _, pid := range s.host {
		own, rings, err := treeResident(pid)
		if err != nil {
			return r, err
		}
		r.host, r.rings = r.host+own, r.rings+rings
	}
	for _, pid := range s.dpu {
		own, rings, err := treeResident(pid)
		if err != nil {
			return r, err
		}
		r.dpu, r.rings = r.dpu+own, r.rings+rings
	}
	return r, nil
}

// sessionFile is what hostd calls a session's memory.
const sessionFile = "/memfd:pno-session"

// treeResident sums the resident memory of a process and its descendants, pages
// that are shared by their share.
func treeResident(pid int) (own, rings int64, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		return 0, 0, fmt.Errorf("read memory of process %d: %w", pid, err)
	}
	ring := false
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		switch {
		case len(f) >= 5 && strings.Contains(f[0], "-"): // a mapping: range, rights, offset, device, inode, file
			ring = len(f) > 5 && strings.HasPrefix(f[5], sessionFile)
		case len(f) >= 2 && f[0] == "Pss:":
			kib, _ := strconv.ParseInt(f[1], 10, 64)
			if ring {
				rings += kib << 10
			} else {
				own += kib << 10
			}
		}
	}
	for _, c := range children(pid) {
		o, r, err := treeResident(c)
		if err != nil {
			return 0, 0, err
		}
		own, rings = own+o, rings+r
	}
	return own, rings, nil
}

// holder is a process that has connections open.
type holder struct {
	t     *topology
	name  string // of its log
	pid   int
	count int
}

// holdSome starts a process that opens count connections, from an address of
// its own, and waits until they are open.
func (s *subject) holdSome(ctx context.Context, n, count int) (*holder, error) {
	from := netip.MustParseAddr(s.clientAddr)
	for range n + 10 {
		from = from.Next()
	}
	if err := run("ip", "-n", s.clientNS, "addr", "add", from.String()+"/24", "dev", "eth0"); err != nil {
		return nil, err
	}
	h := &holder{t: s.t, name: fmt.Sprintf("%s-hold%d", s.name, n), count: count}
	c, err := s.t.start(s.clientNS, otherCore, h.name, filepath.Join(s.t.bin, "pno"), "bench", "hold", from.String(),
		net.JoinHostPort(s.hostAddr, "80"), strconv.Itoa(count))
	if err != nil {
		return nil, err
	}
	h.pid = c.Process.Pid
	return h, h.await(ctx, held)
}

// ask has it fetch a page by each of its connections.
func (h *holder) ask(ctx context.Context) error {
	if err := syscall.Kill(h.pid, syscall.SIGUSR1); err != nil {
		return fmt.Errorf("ask %s whether its connections answer: %w", h.name, err)
	}
	return h.await(ctx, held+"\n"+answered)
}

// await waits for the whole lines that it is to print.
func (h *holder) await(ctx context.Context, want string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for {
		b, _ := os.ReadFile(filepath.Join(h.t.dir, h.name+".log"))
		switch text := string(b); {
		case text == want+"\n":
			return nil
		case strings.HasSuffix(text, "\n") && !strings.HasPrefix(want+"\n", text):
			return fmt.Errorf("%s: %s", h.name, strings.TrimSpace(text))
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s, %d connections: %w", h.name, h.count, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// What Hold prints.
const (
	held     = "held"
	answered = "answered"
)

// Hold opens count connections from a local address, asks for a page on each,
// says so on standard output, and waits until ctx ends. At SIGUSR1 it asks once
// more on all of them.
func Hold(ctx context.Context, from, to string, count int) error {
	again := make(chan os.Signal, 1)
	signal.Notify(again, syscall.SIGUSR1)
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: 10 * time.Second, KeepAlive: -1}
	var conns []net.Conn
	for range count {
		c, err := d.DialContext(ctx, "tcp", to)
		if err != nil {
			return fmt.Errorf("open a connection: %w", err)
		}
		defer c.Close()
		if err := fetch(c); err != nil {
			return err
		}
		conns = append(conns, c)
	}
	fmt.Println(held)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-again:
		}
		for i, c := range conns {
			if err := fetch(c); err != nil {
				return fmt.Errorf("connection %d of %d, after it was idle: %w", i+1, count, err)
			}
		}
		fmt.Println(answered)
	}
}

// fetch asks for a page, so that the connection is one that has been used.
func fetch(c net.Conn) error {
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return fmt.Errorf("set a time limit: %w", err)
	}
	if _, err := fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		return fmt.Errorf("ask for a page: %w", err)
	}
	r := bufio.NewReaderSize(c, 512)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return fmt.Errorf("read a page: %w", err)
		}
		if line == "\r\n" {
			_, err := r.ReadByte() // the body
			return err
		}
	}
}

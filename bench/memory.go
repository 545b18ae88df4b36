// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Memory is what idle connections and an idle system cost.
type Memory struct {
	Benchmark string      `json:"benchmark"`
	Conns     int         `json:"conns"`
	Kernel    MemoryUse   `json:"kernel"`
	Offload   MemoryUse   `json:"offload"`
	Steps     []MemoryUse `json:"offload_steps"` // as connections are added
	Machine   Machine     `json:"machine"`
}

// MemoryUse is resident memory for each connection, over what the processes
// took with none, and the CPU that all of them use while nothing happens, in
// per cent of a core. The kernel's own memory for its sockets is not in it. The
// rings are told apart: they come with a process, and become resident as they
// are filled for the first time, by however many connections.
type MemoryUse struct {
	Conns     int     `json:"conns"`
	HostBytes float64 `json:"host_bytes_per_conn"`
	DPUBytes  float64 `json:"dpu_bytes_per_conn"`
	Rings     int64   `json:"ring_bytes"` // resident, of all processes
	HostIdle  float64 `json:"host_idle_cpu_percent"`
	DPUIdle   float64 `json:"dpu_idle_cpu_percent"`
}

const (
	holdEach    = 12_500 // connections of one process, on either side: descriptors are limited
	memorySteps = 4
)

// MeasureMemory opens conns connections to nginx, spread over several workers,
// and leaves them alone.
func MeasureMemory(ctx context.Context, o Options, conns int) (*Memory, error) {
	if conns < memorySteps {
		return nil, fmt.Errorf("at least %d connections are needed", memorySteps)
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
				m.Offload, m.Steps = last, steps
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
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
	held, n := 0, 0
	for step := 1; step <= memorySteps; step++ {
		for want := conns * step / memorySteps; held < want; n++ {
			count := min(holdEach, want-held)
			if err := s.holdSome(ctx, n, count); err != nil {
				return nil, err
			}
			held += count
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
		use.DPUBytes = float64(now.dpu-before.dpu) / float64(held)
		o.Log("%s, %d connections: %.0f bytes each on the host, %.0f on the DPU; rings %.1f MB; idle %.2f %% and %.2f %% of a core",
			s.name, held, use.HostBytes, use.DPUBytes, float64(use.Rings)/1e6, use.HostIdle, use.DPUIdle)
		steps = append(steps, use)
	}
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

// holdSome starts a process that opens count connections, from an address of
// its own, and waits until they are open.
func (s *subject) holdSome(ctx context.Context, n, count int) error {
	from := netip.MustParseAddr(s.clientAddr)
	for range n + 10 {
		from = from.Next()
	}
	if err := run("ip", "-n", s.clientNS, "addr", "add", from.String()+"/24", "dev", "eth0"); err != nil {
		return err
	}
	name := fmt.Sprintf("%s-hold%d", s.name, n)
	if _, err := s.t.start(s.clientNS, otherCore, name, filepath.Join(s.t.bin, "pno"), "bench", "hold", from.String(),
		net.JoinHostPort(s.hostAddr, "80"), strconv.Itoa(count)); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for {
		if b, _ := os.ReadFile(filepath.Join(s.t.dir, name+".log")); strings.Contains(string(b), "\n") {
			if strings.TrimSpace(string(b)) == held {
				return nil
			}
			return errors.New(strings.TrimSpace(string(b)))
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d connections from %s: %w", count, from, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

const held = "held"

// Hold opens count connections from a local address, asks for a page on each,
// says so on standard output, and waits until ctx ends.
func Hold(ctx context.Context, from, to string, count int) error {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: 10 * time.Second, KeepAlive: -1}
	for range count {
		c, err := d.DialContext(ctx, "tcp", to)
		if err != nil {
			return fmt.Errorf("open a connection: %w", err)
		}
		defer c.Close()
		if err := fetch(c); err != nil {
			return err
		}
	}
	fmt.Println(held)
	<-ctx.Done()
	return nil
}

// fetch asks for a page, so that the connection is one that has been used.
func fetch(c net.Conn) error {
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

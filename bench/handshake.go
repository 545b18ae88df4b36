// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// HandshakeOptions shape the handshake benchmark.
type HandshakeOptions struct {
	Options           // a rate of 0: as many as go
	Keys     []string // types of key, as rsa2048, p256
	Versions []string // of TLS, as 1.3
	Clients  int
	Workers  int
}

// HandshakeRun is one measured run, or the median of several, field by field.
type HandshakeRun struct {
	Rate      float64        `json:"handshakes_per_s"`
	ProxyCPU  float64        `json:"proxy_cpu_us"` // a handshake, HAProxy's processes: user and system
	ProxyUser float64        `json:"proxy_user_us"`
	Sleeps    float64        `json:"proxy_sleeps"` // a handshake: how often one of its threads had nothing to do
	AgentCPU  float64        `json:"agent_cpu_us"`
	WorkerCPU float64        `json:"worker_cpu_us"`
	P50       float64        `json:"p50_us"`
	P99       float64        `json:"p99_us"`
	Failed    int            `json:"failed"`
	Spread    float64        `json:"proxy_cpu_spread"` // (max − min) / median over the runs
	Runs      []HandshakeRun `json:"runs,omitempty"`
}

// HandshakeRow compares one type of key over one version of TLS.
type HandshakeRow struct {
	Key       string       `json:"key"`
	TLS       string       `json:"tls"`
	Local     HandshakeRun `json:"local"`
	Cluster   HandshakeRun `json:"cluster"`
	Ratio     float64      `json:"ratio"`      // proxy CPU with the local key ÷ with the cluster
	HostRatio float64      `json:"host_ratio"` // likewise, with the agent's CPU on the cluster's side
}

// HandshakeComparison is the benchmark's result.
type HandshakeComparison struct {
	Benchmark string         `json:"benchmark"`
	Clients   int            `json:"clients"`
	Workers   int            `json:"workers"`
	Offered   int            `json:"rate_offered"` // 0: as many as go
	Rows      []HandshakeRow `json:"rows"`
	Machine   Machine        `json:"machine"`
}

const tlsAddr = "127.0.0.1"

// handshakes is HAProxy with keys at hand and HAProxy with the same keys in a
// cluster, one next to the other.
type handshakes struct {
	HandshakeOptions
	t              *topology
	ns             string
	local, cluster subjectTLS
	agent          int
	workers        []int
}

// subjectTLS is one of the two proxies. Each row has a port.
type subjectTLS struct {
	name string
	pid  int
	port int // of the first row
}

// Handshakes compares full TLS handshakes of HAProxy, with one thread, with a
// local key and with the same key in a cluster.
//
// What is compared is a busy proxy: one that finds handshakes waiting whenever it
// looks, since that is when its CPU time counts. With a local key it is busy by
// itself. With the key in the cluster it takes longer to do the load and the
// signatures than the proxy's part, and there are two cores for everything: the
// proxy would be idle for most of the time, and be woken for each step of each
// handshake. So all programs are batch jobs, the workers on the proxy's core: while
// they sign, the proxy's work piles up, and it does it in one go.
func Handshakes(ctx context.Context, o HandshakeOptions) (*HandshakeComparison, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	if o.Clients < 1 || o.Workers < 1 || len(o.Keys) == 0 || len(o.Versions) == 0 {
		return nil, errors.New("clients and workers must be positive, keys and versions not empty")
	}
	for _, k := range o.Keys {
		if serverKeys[k] == nil {
			return nil, fmt.Errorf("%q is not a type of key; use rsa2048, rsa3072, rsa4096, p256 or p384", k)
		}
	}
	for _, v := range o.Versions {
		if tlsVersions[v] == 0 {
			return nil, fmt.Errorf("%q is not a version of TLS; use 1.2 or 1.3", v)
		}
	}
	t, err := newTopology(o.Bin, "haproxy")
	if err != nil {
		return nil, err
	}
	defer t.Close()
	end, err := asBatch()
	if err != nil {
		return nil, err
	}
	defer end()
	h := &handshakes{HandshakeOptions: o, t: t}
	if err := h.start(ctx); err != nil {
		return nil, err
	}
	c := &HandshakeComparison{Benchmark: "handshake", Clients: o.Clients, Workers: o.Workers, Offered: o.Rate, Machine: machine()}
	for i, row := range h.rows() {
		if err := h.compare(ctx, i, &row); err != nil {
			return nil, err
		}
		c.Rows = append(c.Rows, row)
	}
	return c, nil
}

func (h *handshakes) rows() (rows []HandshakeRow) {
	for _, k := range h.Keys {
		for _, v := range h.Versions {
			rows = append(rows, HandshakeRow{Key: k, TLS: v})
		}
	}
	return rows
}

// start brings the namespaces, the cluster and both proxies up.
func (h *handshakes) start(ctx context.Context) (err error) {
	if h.ns, err = h.t.namespace("tls"); err != nil {
		return err
	}
	// BBR paces with a timer a packet, which is no part of a handshake.
	if err := run("ip", "netns", "exec", h.ns, "sysctl", "-qw", "net.ipv4.tcp_congestion_control=reno"); err != nil {
		return err
	}
	c, err := h.t.newCluster(h.ns)
	if err != nil {
		return err
	}
	for _, kind := range h.Keys {
		if err := h.pems(c, kind); err != nil {
			return err
		}
	}
	var addrs []string
	for range h.Workers {
		addr, err := c.worker(ctx, proxyCore, "[{kind: libcrypto, threads: 1}]")
		if err != nil {
			return err
		}
		addrs = append(addrs, addr)
	}
	h.workers = c.workers
	var socket string
	if h.agent, socket, err = c.agent(ctx, otherCore, addrs); err != nil {
		return err
	}
	provider := fmt.Sprintf("ssl-provider-path %s\n  ssl-provider default\n  ssl-provider pno\n  ssl-mode-async", h.Bin)
	if h.local, err = h.proxy(ctx, "local", 4000, "", ""); err != nil {
		return err
	}
	h.cluster, err = h.proxy(ctx, "cluster", 5000, provider, socket)
	return err
}

// pems writes what the two proxies are given for a key.
func (h *handshakes) pems(c *cluster, kind string) error {
	if err := c.ca.server(kind, tlsAddr); err != nil {
		return err
	}
	ref, err := c.key(kind)
	if err != nil {
		return err
	}
	cert, err := os.ReadFile(h.t.path(kind + ".crt"))
	if err != nil {
		return fmt.Errorf("read a certificate: %w", err)
	}
	key, err := os.ReadFile(h.t.path(kind + ".key"))
	if err != nil {
		return fmt.Errorf("read a key: %w", err)
	}
	for name, second := range map[string][]byte{"local": key, "cluster": ref} {
		if err := os.WriteFile(h.t.path(name+"-"+kind+".pem"), append(append([]byte{}, cert...), second...), 0o600); err != nil {
			return fmt.Errorf("write a proxy's key: %w", err)
		}
	}
	return nil
}

// proxy starts HAProxy with a frontend for each row, which ends a connection
// as soon as the handshake is done. A busy proxy finds the client's first message
// with the connection, and so it is here (defer-accept); one that keeps up with its
// clients looks for it too early, and once more.
func (h *handshakes) proxy(ctx context.Context, name string, port int, global, socket string) (s subjectTLS, err error) {
	var conf strings.Builder
	fmt.Fprintf(&conf, `global
  nbthread 1
  maxconn 8000
  tune.ssl.cachesize 0
  ssl-default-bind-options no-tls-tickets
  %s
defaults
  mode tcp
  timeout connect 5s
  timeout client 20s
  timeout server 5s
`, global)
	for i, row := range h.rows() {
		fmt.Fprintf(&conf, "frontend row%d\n  bind %s:%d defer-accept ssl crt %s ssl-min-ver TLSv%s ssl-max-ver TLSv%[5]s\n  tcp-request content reject\n",
			i, tlsAddr, port+i, h.t.path(name+"-"+row.Key+".pem"), row.TLS)
	}
	if err := os.WriteFile(h.t.path(name+".cfg"), []byte(conf.String()), 0o600); err != nil {
		return s, fmt.Errorf("write the configuration of HAProxy: %w", err)
	}
	args := []string{"haproxy", "-db", "-f", h.t.path(name + ".cfg")}
	if socket != "" {
		args = append([]string{"env", "PNO_AGENT=" + socket}, args...)
	}
	p, err := h.t.start(h.ns, proxyCore, name, args...)
	if err != nil {
		return s, err
	}
	s = subjectTLS{name: name, pid: p.Process.Pid, port: port}
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	for {
		one := h.load(&s, 0, h.rows()[0])
		one.Clients, one.Duration = 1, 50*time.Millisecond
		_, err := one.runIn(ctx, h.Bin, h.ns, otherCore)
		if err == nil {
			return s, nil
		}
		select {
		case <-ctx.Done():
			return s, fmt.Errorf("HAProxy (%s) does not come up: %w\n%s", name, err, h.t.log(name))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (h *handshakes) load(s *subjectTLS, row int, r HandshakeRow) *TLSLoad {
	return &TLSLoad{Addr: fmt.Sprintf("%s:%d", tlsAddr, s.port+row), Roots: filepath.Join(h.t.dir, "ca.crt"), Version: r.TLS,
		Clients: h.Clients, Rate: h.Rate, Duration: h.Duration}
}

// compare measures one row.
func (h *handshakes) compare(ctx context.Context, i int, row *HandshakeRow) error {
	for p := range h.Pairs {
		for _, m := range []struct {
			s   *subjectTLS
			out *HandshakeRun
		}{{&h.local, &row.Local}, {&h.cluster, &row.Cluster}} {
			r, err := h.measure(ctx, m.s, i, *row)
			if err != nil {
				return err
			}
			h.Log("%s TLS %s, pair %d, %s key: %.0f handshakes/s; CPU µs: proxy %.0f (user %.0f, %.2f sleeps), agent %.0f, workers %.0f; p50 %.0f µs, p99 %.0f µs, %d failed",
				row.Key, row.TLS, p+1, m.s.name, r.Rate, r.ProxyCPU, r.ProxyUser, r.Sleeps, r.AgentCPU, r.WorkerCPU, r.P50, r.P99, r.Failed)
			m.out.Runs = append(m.out.Runs, r)
		}
	}
	row.Local, row.Cluster = medianHandshakes(row.Local.Runs), medianHandshakes(row.Cluster.Runs)
	row.Ratio = row.Local.ProxyCPU / row.Cluster.ProxyCPU
	row.HostRatio = row.Local.ProxyCPU / (row.Cluster.ProxyCPU + row.Cluster.AgentCPU)
	return nil
}

func (h *handshakes) measure(ctx context.Context, s *subjectTLS, i int, row HandshakeRow) (HandshakeRun, error) {
	before, err := h.times(s)
	if err != nil {
		return HandshakeRun{}, err
	}
	res, err := h.load(s, i, row).runIn(ctx, h.Bin, h.ns, otherCore)
	if err != nil {
		return HandshakeRun{}, fmt.Errorf("%w\n%s", err, h.t.log(s.name))
	}
	after, err := h.times(s)
	if err != nil {
		return HandshakeRun{}, err
	}
	per := func(get func(*handshakeTimes) time.Duration) float64 {
		return micros(get(&after)-get(&before)) / float64(res.Handshakes)
	}
	return HandshakeRun{Rate: float64(res.Handshakes) / res.Seconds,
		ProxyCPU:  per(func(t *handshakeTimes) time.Duration { return t.proxy }),
		ProxyUser: per(func(t *handshakeTimes) time.Duration { return t.proxyUser }),
		Sleeps:    float64(after.sleeps-before.sleeps) / float64(res.Handshakes),
		AgentCPU:  per(func(t *handshakeTimes) time.Duration { return t.agent }),
		WorkerCPU: per(func(t *handshakeTimes) time.Duration { return t.workers }),
		P50:       res.P50, P99: res.P99, Failed: res.Failed}, nil
}

// handshakeTimes is the CPU time that each part has used, and how often the proxy
// has slept.
type handshakeTimes struct {
	proxy, proxyUser, agent, workers time.Duration
	sleeps                           int
}

func (h *handshakes) times(s *subjectTLS) (t handshakeTimes, err error) {
	if t.proxy, err = treeCPU(s.pid); err != nil {
		return t, err
	}
	if t.proxyUser, err = userCPU(s.pid); err != nil {
		return t, err
	}
	if t.sleeps, err = sleeps(s.pid); err != nil {
		return t, err
	}
	if t.agent, err = treeCPU(h.agent); err != nil {
		return t, err
	}
	for _, pid := range h.workers {
		d, err := treeCPU(pid)
		if err != nil {
			return t, err
		}
		t.workers += d
	}
	return t, nil
}

// medianHandshakes takes the median of each field.
func medianHandshakes(runs []HandshakeRun) HandshakeRun {
	field := func(get func(HandshakeRun) float64) float64 { return medianOf(runs, get) }
	m := HandshakeRun{
		Rate:      field(func(r HandshakeRun) float64 { return r.Rate }),
		ProxyCPU:  field(func(r HandshakeRun) float64 { return r.ProxyCPU }),
		ProxyUser: field(func(r HandshakeRun) float64 { return r.ProxyUser }),
		Sleeps:    field(func(r HandshakeRun) float64 { return r.Sleeps }),
		AgentCPU:  field(func(r HandshakeRun) float64 { return r.AgentCPU }),
		WorkerCPU: field(func(r HandshakeRun) float64 { return r.WorkerCPU }),
		P50:       field(func(r HandshakeRun) float64 { return r.P50 }),
		P99:       field(func(r HandshakeRun) float64 { return r.P99 }),
		Spread:    spreadOf(runs, func(r HandshakeRun) float64 { return r.ProxyCPU }),
		Runs:      runs,
	}
	for _, r := range runs {
		m.Failed += r.Failed
	}
	return m
}

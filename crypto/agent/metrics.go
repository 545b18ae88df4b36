// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"github.com/prometheus/client_golang/prometheus"

	"pno/crypto/client"
	"pno/crypto/signing"
)

// latencyBuckets begin where a signature of a worker nearby ends, and reach to
// the longest timeout.
var latencyBuckets = prometheus.ExponentialBuckets(50e-6, 2, 18)

func newLatency() prometheus.Histogram {
	return prometheus.NewHistogram(prometheus.HistogramOpts{Name: "pno_agent_operation_seconds",
		Help: "Time from the arrival of an operation to its answer.", Buckets: latencyBuckets})
}

// Metrics tells what an agent and its client have done, at each scrape.
type Metrics struct{ r *Running }

// Metrics are those of a running agent, for a registry.
func (r *Running) Metrics() *Metrics { return &Metrics{r} }

type metric struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
}

func newMetric(kind prometheus.ValueType, name, help string, labels ...string) metric {
	return metric{prometheus.NewDesc("pno_agent_"+name, help, labels, nil), kind}
}

func (m metric) send(ch chan<- prometheus.Metric, value float64, labels ...string) {
	ch <- prometheus.MustNewConstMetric(m.desc, m.kind, value, labels...)
}

var (
	connections = newMetric(prometheus.GaugeValue, "connections", "Open connections of the OpenSSL provider.")
	refused     = newMetric(prometheus.CounterValue, "refused_connections_total", "Connections refused for who made them, for their number, or for their first message.")
	malformed   = newMetric(prometheus.CounterValue, "malformed_connections_total", "Connections ended for bytes that are no message.")
	operations  = newMetric(prometheus.CounterValue, "operations_total", "Operations by how they ended.", "status")
	tierUsed    = newMetric(prometheus.CounterValue, "tier_operations_total", "Operations done, by the cluster or fallback that did them.", "tier")
	expiry      = newMetric(prometheus.GaugeValue, "certificate_expiry_timestamp_seconds", "When the agent's own certificate expires.")

	workerConnected   = newMetric(prometheus.GaugeValue, "worker_connected", "Whether any stream to the worker is open.", "cluster", "worker")
	workerKeptOut     = newMetric(prometheus.GaugeValue, "worker_kept_out", "Whether the circuit breaker keeps operations away from the worker.", "cluster", "worker")
	workerOutstanding = newMetric(prometheus.GaugeValue, "worker_outstanding", "Operations that the worker has not answered yet.", "cluster", "worker")
)

// clusterCounters are the counters of a cluster's client.
var clusterCounters = []struct {
	metric
	get func(*client.Stats) uint64
}{
	{newMetric(prometheus.CounterValue, "cluster_operations_total", "Operations asked of a cluster.", "cluster"), func(s *client.Stats) uint64 { return s.Operations }},
	{newMetric(prometheus.CounterValue, "cluster_failures_total", "Operations that no worker of a cluster did in time.", "cluster"), func(s *client.Stats) uint64 { return s.Failures }},
	{newMetric(prometheus.CounterValue, "retries_total", "Operations asked of another worker after a bad answer.", "cluster"), func(s *client.Stats) uint64 { return s.Retries }},
	{newMetric(prometheus.CounterValue, "hedges_total", "Operations asked of another worker because the answer was late.", "cluster"), func(s *client.Stats) uint64 { return s.Hedges }},
	{newMetric(prometheus.CounterValue, "hedge_wins_total", "Hedged operations that the other worker answered first.", "cluster"), func(s *client.Stats) uint64 { return s.HedgeWins }},
	{newMetric(prometheus.CounterValue, "broken_operations_total", "Operations lost with the stream that they were on.", "cluster"), func(s *client.Stats) uint64 { return s.Broken }},
	{newMetric(prometheus.CounterValue, "wrong_signatures_total", "Signatures that did not verify; their worker is kept out.", "cluster"), func(s *client.Stats) uint64 { return s.Wrong }},
	{newMetric(prometheus.CounterValue, "breaker_opened_total", "Times that a worker was kept out after failures.", "cluster"), func(s *client.Stats) uint64 { return s.Breaks }},
	{newMetric(prometheus.CounterValue, "over_budget_total", "Repetitions that the budget did not allow.", "cluster"), func(s *client.Stats) uint64 { return s.OverBudget }},
}

// Describe sends every family.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, f := range []metric{connections, refused, malformed, operations, tierUsed, expiry, workerConnected, workerKeptOut, workerOutstanding} {
		ch <- f.desc
	}
	for _, f := range clusterCounters {
		ch <- f.desc
	}
	m.r.latency.Describe(ch)
}

// Collect sends every value.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	s := m.r.Stats()
	connections.send(ch, float64(s.Connections.Load()))
	refused.send(ch, float64(s.Refused.Load()))
	malformed.send(ch, float64(s.Malformed.Load()))
	for _, status := range signing.Statuses {
		operations.send(ch, float64(s.Operations[status].Load()), status.String())
	}
	m.r.latency.Collect(ch)
	if id := m.r.Identity; id != nil {
		expiry.send(ch, float64(id.Expires().Unix()))
	}
	for tier, n := range m.r.Client.Used() {
		tierUsed.send(ch, float64(n), tier)
	}
	for _, t := range m.r.Client.Tiers() {
		if c, ok := t.(*client.Cluster); ok {
			collectCluster(ch, c)
		}
	}
}

func collectCluster(ch chan<- prometheus.Metric, c *client.Cluster) {
	stats := c.Stats()
	for _, f := range clusterCounters {
		f.send(ch, float64(f.get(&stats)), c.Name())
	}
	for _, w := range stats.Workers {
		workerConnected.send(ch, bit(w.Connected), c.Name(), w.Address)
		workerKeptOut.send(ch, bit(w.KeptOut), c.Name(), w.Address)
		workerOutstanding.send(ch, float64(w.Outstanding), c.Name(), w.Address)
	}
}

func bit(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// SPDX-License-Identifier: Apache-2.0

package server

import (
	"log/slog"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"pno/crypto/engine"
	"pno/crypto/mtls"
	"pno/crypto/signing"
)

// metrics of one worker; each has a registry of its own.
type metrics struct {
	registry   *prometheus.Registry
	operations [16]prometheus.Counter // by status
	queue      prometheus.Histogram
	exec       prometheus.Histogram
	faults     *prometheus.CounterVec
	undone     *prometheus.CounterVec
	handshakes prometheus.Counter
	malformed  prometheus.Counter
	ended      prometheus.Counter
	streams    prometheus.Gauge
	keys       prometheus.Gauge
	badKeys    prometheus.Gauge
	engines    *prometheus.GaugeVec
	limited    *prometheus.CounterVec
}

func newMetrics(id *mtls.Identity) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "pno", Subsystem: "crypto", Name: name, Help: help})
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "pno", Subsystem: "crypto", Name: name, Help: help})
	}
	histogram := func(name, help string) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: "pno", Subsystem: "crypto", Name: name, Help: help,
			Buckets: prometheus.ExponentialBuckets(10e-6, 2, 18)})
	}
	m := &metrics{
		registry:   prometheus.NewRegistry(),
		queue:      histogram("queue_seconds", "Time between the arrival of an operation and its computation."),
		exec:       histogram("exec_seconds", "Time of computation of an operation."),
		handshakes: counter("refused_handshakes_total", "Connections and streams refused for their certificate."),
		malformed:  counter("malformed_requests_total", "Streams ended for a request outside the bounds."),
		ended:      counter("ended_streams_total", "Streams ended because the client lost its right."),
		streams:    gauge("streams", "Open streams."),
		keys:       gauge("keys", "Keys in use."),
		badKeys:    gauge("key_errors", "Keys of the store that could not be read or loaded at the last look."),
		faults: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "pno", Subsystem: "crypto", Name: "engine_faults_total",
			Help: "Operations that an engine failed, or answered with a signature that does not verify."}, []string{"engine"}),
		undone: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "pno", Subsystem: "crypto", Name: "engine_undone_total",
			Help: "Operations that an engine could not do, as when the cluster behind it is gone or lacks the key; the next engine is asked."}, []string{"engine"}),
	}
	m.engines = prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: "pno", Subsystem: "crypto", Name: "engines",
		Help: "Engines of this worker, by what they are, whether they model hardware that is not there, and the processor features that they use."},
		[]string{"engine", "detail", "simulated", "features"})
	m.limited = prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "pno", Subsystem: "crypto", Name: "limited_total",
		Help: "Connections and streams refused because there were too many: connections, client_connections, streams; strangers: closed for newer ones before they had shown a certificate."}, []string{"what"})
	vec := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "pno", Subsystem: "crypto", Name: "operations_total",
		Help: "Operations by how they ended."}, []string{"status"})
	for _, s := range signing.Statuses {
		m.operations[s] = vec.WithLabelValues(s.String())
	}
	expiry := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "pno", Subsystem: "crypto", Name: "certificate_expiry_timestamp_seconds",
		Help: "When the worker's own certificate expires."}, func() float64 { return float64(id.Expires().Unix()) })
	m.registry.MustRegister(vec, expiry, m.limited, m.queue, m.exec, m.faults, m.undone, m.handshakes, m.malformed, m.ended, m.streams, m.keys, m.badKeys, m.engines)
	return m
}

// tell shows what a worker computes with.
func (m *metrics) tell(log *slog.Logger, i engine.Info) {
	features := strings.Join(i.Features, " ")
	m.engines.WithLabelValues(i.Kind, i.Detail, strconv.FormatBool(i.Simulated), features).Inc()
	log.Info("engine started", "engine", i.Kind, "detail", i.Detail, "capacity", i.Capacity, "simulated", i.Simulated, "features", features)
}

func (m *metrics) count(s signing.Status) { m.operations[s].Inc() }

// Registry holds the worker's metrics.
func (s *Server) Registry() *prometheus.Registry { return s.metrics.registry }

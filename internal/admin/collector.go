// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"github.com/prometheus/client_golang/prometheus"

	adminv1 "pno/proto/pno/admin/v1"
)

// A collector turns one snapshot into metrics at each scrape. Its families are
// a table: the name, what it means, and where in the snapshot it is found.
type collector struct {
	take     func() snapshot
	families []family
	// open yields the counters whose set grows from release to release, and
	// the prefix of their names.
	open   func(snapshot) []*adminv1.Counter
	prefix string
}

// snapshot is what one scrape sees.
type snapshot struct {
	status *adminv1.Status
	stats  *adminv1.Stats
	shards []*adminv1.Shard
	links  []*adminv1.Link
}

// emit takes one value of a family, with the values of its labels.
type emit func(value uint64, labels ...string)

type family struct {
	desc   *prometheus.Desc
	kind   prometheus.ValueType
	values func(snapshot, emit)
}

func counter(name, help string, values func(snapshot, emit), labels ...string) family {
	return family{prometheus.NewDesc(name, help, labels, nil), prometheus.CounterValue, values}
}

func gauge(name, help string, values func(snapshot, emit), labels ...string) family {
	return family{prometheus.NewDesc(name, help, labels, nil), prometheus.GaugeValue, values}
}

// one is a family with a single value.
func one(value func(snapshot) uint64) func(snapshot, emit) {
	return func(s snapshot, e emit) { e(value(s)) }
}

// byLabel is a family with a value for each key of a map.
func byLabel(values func(snapshot) map[string]uint64) func(snapshot, emit) {
	return func(s snapshot, e emit) {
		for label, v := range values(s) {
			e(v, label)
		}
	}
}

// Describe sends the families that are always there.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, f := range c.families {
		ch <- f.desc
	}
}

// Collect takes a snapshot and sends everything in it.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	s := c.take()
	for _, f := range c.families {
		f.values(s, func(value uint64, labels ...string) {
			ch <- prometheus.MustNewConstMetric(f.desc, f.kind, float64(value), labels...)
		})
	}
	for _, m := range c.open(s) {
		ch <- c.openMetric(m)
	}
}

func (c *collector) openMetric(m *adminv1.Counter) prometheus.Metric {
	name, kind := c.prefix+m.GetName(), prometheus.GaugeValue
	if !m.GetGauge() {
		name, kind = name+"_total", prometheus.CounterValue
	}
	help := m.GetHelp()
	if help == "" {
		help = m.GetName()
	}
	desc := prometheus.NewDesc(name, help, nil, nil)
	metric, err := prometheus.NewConstMetric(desc, kind, float64(m.GetValue()))
	if err != nil {
		return prometheus.NewInvalidMetric(desc, err)
	}
	return metric
}

// info is a family whose value is 1 and whose labels say what runs.
func info(name string) family {
	return gauge(name, "The build that runs; always 1.", func(s snapshot, e emit) {
		e(1, s.status.GetVersion(), s.status.GetProtocol())
	}, "version", "protocol")
}

func bit(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}

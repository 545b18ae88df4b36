// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bytes"
	"log/slog"
	"maps"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"pno/crypto/engine"
)

// What a worker computes with is told in its log and its metrics, and a model of
// a card as what it is.
func TestEnginesAreTold(t *testing.T) {
	m := newMetrics(nil)
	var log bytes.Buffer
	for _, i := range []engine.Info{
		{Kind: "go", Detail: "go1", Features: []string{"adx", "bmi2"}},
		{Kind: "simcard", Detail: "a simulated card", Simulated: true},
		{Kind: "simcard", Detail: "a simulated card", Simulated: true},
	} {
		m.tell(slog.New(slog.NewTextHandler(&log, nil)), i)
	}
	r := prometheus.NewRegistry()
	r.MustRegister(m.engines)
	families, err := r.Gather()
	if err != nil || len(families) != 1 {
		t.Fatal(families, err)
	}
	got := map[string]float64{}
	for _, row := range families[0].Metric {
		var labels []string
		for _, l := range row.Label {
			labels = append(labels, l.GetName()+"="+l.GetValue())
		}
		got[strings.Join(labels, ",")] = row.Gauge.GetValue()
	}
	want := map[string]float64{
		"detail=go1,engine=go,features=adx bmi2,simulated=false":          1,
		"detail=a simulated card,engine=simcard,features=,simulated=true": 2,
	}
	if !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := strings.Count(log.String(), "simulated=true"); got != 2 {
		t.Errorf("%d engines are simulated by the log:\n%s", got, &log)
	}
}

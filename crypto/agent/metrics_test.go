// SPDX-License-Identifier: Apache-2.0

package agent_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"pno/crypto/agent"
	"pno/crypto/cryptotest"
	"pno/crypto/signing"
	"pno/internal/config"
)

// run starts an agent of settings.
func run(t *testing.T, c *cryptotest.Cluster, path string) *agent.Running {
	t.Helper()
	r, err := agent.Open(&agent.Settings{
		Timeout: config.Duration(time.Second), Listen: []agent.SocketSettings{{Path: path}}, TLS: c.CA.Issue(t, cryptotest.ProxyURI, time.Hour),
		Clusters: []agent.ClusterSettings{{Name: "here", Workers: c.Addrs(), WorkerIdentity: cryptotest.WorkerURI}},
	}, agent.GoEngine, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
		r.Close()
	})
	return r
}

// exposition is what Prometheus would read.
func exposition(t *testing.T, all ...prometheus.Gatherer) string {
	t.Helper()
	w := httptest.NewRecorder()
	promhttp.HandlerFor(prometheus.Gatherers(all), promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if w.Code != http.StatusOK {
		t.Fatal(w.Body)
	}
	return w.Body.String()
}

func TestMetrics(t *testing.T) {
	c := cryptotest.New(t, 2, cryptotest.AllowAll, "P-256")
	path := filepath.Join(t.TempDir(), "s")
	r := run(t, c, path)
	p := greet(t, path)
	bad := *request(t)
	bad.Data = bad.Data[:5]
	p.send(agent.AppendOp(agent.AppendOp(nil, 1, request(t), 0), 2, &bad, 0))
	if got := p.results(2); signing.Status(got[1].Status) != signing.OK || signing.Status(got[2].Status) != signing.BadInput {
		t.Fatalf("got %+v", got)
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(r.Metrics())
	text := exposition(t, registry)
	for _, want := range []string{
		"pno_agent_connections 1", `pno_agent_operations_total{status="ok"} 1`, `pno_agent_operations_total{status="bad_input"} 1`,
		"pno_agent_operation_seconds_count 2", `pno_agent_tier_operations_total{tier="here"} 1`, `pno_agent_cluster_operations_total{cluster="here"} 2`,
		`pno_agent_worker_connected{cluster="here",worker="` + c.Addrs()[0] + `"} `, `pno_agent_worker_kept_out{cluster="here",worker="` + c.Addrs()[1] + `"} 0`,
		`pno_agent_worker_outstanding{`, `pno_agent_hedges_total{`, `pno_agent_retries_total{`, `pno_agent_wrong_signatures_total{`, `pno_agent_over_budget_total{`,
		"pno_agent_certificate_expiry_timestamp_seconds ",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in\n%s", want, text)
		}
	}
	promtool(t, text, "check", "metrics")
	promtool(t, exposition(t, c.Workers[0].Server.Registry()), "check", "metrics")
	rules(t, text+exposition(t, c.Workers[0].Server.Registry()))

	if !r.Healthy() {
		t.Error("not healthy with its workers connected")
	}
	for _, w := range c.Workers {
		w.Server.Close()
	}
	for deadline := time.Now().Add(10 * time.Second); r.Healthy(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("healthy without a worker")
		}
	}
}

func promtool(t *testing.T, stdin string, args ...string) {
	t.Helper()
	path, err := exec.LookPath("promtool")
	if err != nil {
		t.Fatal("promtool is not installed (Debian package prometheus)")
	}
	cmd := exec.CommandContext(t.Context(), path, args...)
	cmd.Stdin = strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("promtool %v: %v\n%s", args, err, out)
	}
}

var metricName = regexp.MustCompile(`\bpno_[a-z0-9_]+`)

// rules checks the alerts, and that they speak of what exists. Counters with a
// label that has had no value yet are not exposed, so that their names are here.
func rules(t *testing.T, exposed string) {
	t.Helper()
	const file = "../../deploy/crypto.rules.yml"
	promtool(t, "", "check", "rules", file)
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	silent := []string{"pno_crypto_engine_faults_total", "pno_crypto_audit_lost_total"}
	names := metricName.FindAllString(string(text), -1)
	if len(names) < 10 {
		t.Errorf("alerts speak of %v only", names)
	}
	for _, name := range names {
		if !slices.Contains(silent, name) && !strings.Contains(exposed, "\n"+strings.TrimSuffix(name, "_bucket")) {
			t.Errorf("%s: there is no metric %s", file, name)
		}
	}
}

// A certificate that is replaced on disk is used without a restart.
func TestCertificateReload(t *testing.T) {
	c := cryptotest.New(t, 1, cryptotest.AllowAll, "P-256")
	r := run(t, c, filepath.Join(t.TempDir(), "s"))
	before := r.Identity.Expires()
	c.CA.IssueInto(t, r.Identity.Files(), cryptotest.ProxyURI, 3*time.Hour)
	for deadline := time.Now().Add(10 * time.Second); !r.Identity.Expires().After(before); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the former certificate is still in force")
		}
	}
}

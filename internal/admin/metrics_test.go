// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"flag"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pno/internal/admin/admintest"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// exposition returns what /metrics says, without the status line.
func exposition(t *testing.T, role string) string {
	t.Helper()
	serve := serveHost
	if role == "dpu" {
		serve = serveDPU(admintest.DPU{})
	}
	status, body, _ := strings.Cut(get(t, start(t, serve, Options{Metrics: "127.0.0.1:0"}), "/metrics"), "\n")
	if status != "200 OK" {
		t.Fatalf("%s: %s", status, body)
	}
	return body
}

// The metrics of pno are an interface: dashboards and alerts name them. The
// whole of our own, with values, is held; of the libraries' only the prefixes.
func TestMetricsGolden(t *testing.T) {
	for _, role := range []string{"dpu", "host"} {
		t.Run(role, func(t *testing.T) {
			var ours []string
			foreign := map[string]bool{}
			for line := range strings.Lines(exposition(t, role)) {
				name := strings.TrimPrefix(strings.TrimPrefix(line, "# HELP "), "# TYPE ")
				if strings.HasPrefix(name, "pno_"+role+"_") {
					ours = append(ours, line)
					continue
				}
				prefix, _, _ := strings.Cut(name, "_")
				foreign[prefix] = true
			}
			golden(t, filepath.Join("testdata", "metrics_"+role+".txt"), strings.Join(ours, ""))
			if got := slices.Sorted(maps.Keys(foreign)); !slices.Equal(got, []string{"go", "grpc", "process", "promhttp"}) {
				t.Errorf("other metrics begin with %v", got)
			}
		})
	}
}

func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("differs from %s (go test -update rewrites it):\n%s", file, got)
	}
}

// promtool knows the naming rules of Prometheus better than we do.
func TestMetricsLint(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("promtool is not installed (Debian package prometheus)")
	}
	for _, role := range []string{"dpu", "host"} {
		t.Run(role, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), promtool, "check", "metrics")
			cmd.Stdin = strings.NewReader(exposition(t, role))
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("promtool check metrics: %v\n%s", err, out)
			}
		})
	}
}

func TestMetricsEndpointServesNothingElse(t *testing.T) {
	r := start(t, serveHost, Options{Metrics: "127.0.0.1:0"})
	for _, path := range []string{"/", "/debug/pprof/", "/metrics/x"} {
		if got := get(t, r, path); !strings.HasPrefix(got, "404 ") {
			t.Errorf("%s: %s", path, got)
		}
	}
}

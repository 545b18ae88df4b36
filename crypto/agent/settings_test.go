// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pno/internal/config"
)

// What makes no sense is refused when the file is read, and not when an operation
// meets it.
func TestSettings(t *testing.T) {
	const cluster = "clusters: [{workers: [\"a:1\"], worker_identity: \"spiffe://x/*\", "
	for text, bad := range map[string]string{
		cluster + "stall: 1s}]":              "",
		cluster + "stall: 3ns}]":             "a.yaml:3:71: 3ns, want 10ms to 1m0s",
		cluster + "wait: 2m}]":               "2m0s, want",
		cluster + "eject: 2h}]":              "2h0m0s, want",
		cluster + "attempts: 17}]":           "up to 16",
		cluster + "streams: -1}]":            "up to 64",
		"local: {dir: d, kek: k, idle: 1ns}": "1ns, want",
		"local: {dir: d}":                    "kek",
		"clusters: []":                       "clusters",
	} {
		path := filepath.Join(t.TempDir(), "a.yaml")
		if err := os.WriteFile(path, []byte("listen: [{path: /s}]\ntls: {cert: c, key: k, ca: a}\n"+text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		err := config.Load(path, new(Settings))
		if bad == "" && err != nil || bad != "" && (err == nil || !strings.Contains(err.Error(), bad)) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

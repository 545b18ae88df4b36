// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pno/crypto/engine"
	"pno/crypto/engine/libcrypto"
	"pno/internal/config"
)

// Reflection is off unless the file turns it on.
func TestReflectionSetting(t *testing.T) {
	for text, want := range map[string]bool{"name: a\n": false, "reflection: false\n": false, "reflection: true\n": true} {
		path := filepath.Join(t.TempDir(), "c.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		set := defaultSettings()
		if err := config.Load(path, &set); err != nil {
			t.Fatal(err)
		}
		if got := (&worker{set: set}).config(nil).Reflection; got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
}

func TestHeapSetting(t *testing.T) {
	if !libcrypto.Available {
		t.Skip("built without cgo")
	}
	for size, good := range map[string]bool{"0": true, "1MiB": true, "64MiB": true, "128MiB": true, "3MiB": false, "512KiB": false, "256MiB": false} {
		path := filepath.Join(t.TempDir(), "c.yaml")
		if err := os.WriteFile(path, []byte("engines:\n- kind: libcrypto\n  heap: "+size+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		set := defaultSettings()
		err := config.Load(path, &set)
		if good && err != nil || !good && (err == nil || !strings.Contains(err.Error(), "heap")) {
			t.Errorf("%s: %v", size, err)
		}
	}
}

// Without a word about engines, and with auto, a worker computes with libcrypto
// where it is built in, else with Go's packages: an engine that starts anywhere.
func TestAutoEngine(t *testing.T) {
	want := "go"
	if libcrypto.Available {
		want = "libcrypto"
	}
	for _, text := range []string{"name: a\n", "engines: [{kind: auto, threads: 1}]\n"} {
		set := defaultSettings()
		if err := config.Parse("c", []byte(text), &set); err != nil {
			t.Fatal(err)
		}
		e, err := set.Engines[0].opener(nil)(func([]*engine.Op) {})
		if err != nil {
			t.Fatal(err)
		}
		if i := e.Info(); i.Kind != want || len(set.Engines) != 1 {
			t.Errorf("%q: %d engines, the first %+v; want %s", text, len(set.Engines), i, want)
		}
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}
}

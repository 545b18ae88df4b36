// SPDX-License-Identifier: Apache-2.0

package cpufeat

import (
	"bufio"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"unicode"
)

func TestDetect(t *testing.T) {
	f := Detect()
	t.Log(f)
	if !slices.IsSorted(f.Names) {
		t.Errorf("names are not sorted: %q", f.Names)
	}
	if again := Detect(); !slices.Equal(f.Names, again.Names) || f.Model != again.Model {
		t.Errorf("two answers: %v, then %v", f, again)
	}
	if i := strings.IndexFunc(f.Model, unicode.IsControl); i >= 0 {
		t.Errorf("model %q has a control character at %d", f.Model, i)
	}
	for _, name := range f.Names {
		if !f.Has(name) {
			t.Errorf("Has(%q) is false, though Names lists it", name)
		}
	}
	if f.Has("no-such-feature") {
		t.Error("Has(no-such-feature) is true")
	}
	switch runtime.GOARCH {
	case "amd64":
		if f.Model == "" {
			t.Error("no model on amd64")
		}
	case "arm64":
		if !f.Has("asimd") {
			t.Error("asimd is missing, though every arm64 has it")
		}
	}
}

func TestString(t *testing.T) {
	tests := []struct {
		name string
		in   Features
		want string
	}{
		{"nothing known", Features{}, "unnamed processor"},
		{"model only", Features{Model: "X"}, "X"},
		{"both", Features{Model: "X", Names: []string{"aes", "sha2"}}, "X [aes sha2]"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.in.String(); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// The kernel is the witness: every feature that we can name is present exactly
// if /proc/cpuinfo lists it.
func TestAgreesWithKernel(t *testing.T) {
	kernel := cpuinfoFlags(t)
	if kernel == nil {
		t.Skip("/proc/cpuinfo has no flags line for this architecture")
	}
	for name, have := range present() {
		if want := slices.Contains(kernel, name); have != want {
			t.Errorf("%s: we say %v, the kernel says %v", name, have, want)
		}
	}
}

func cpuinfoFlags(t *testing.T) []string {
	t.Helper()
	file, err := os.Open("/proc/cpuinfo")
	if err != nil {
		t.Skipf("no witness: %v", err)
	}
	defer file.Close()
	key := map[string]string{"amd64": "flags", "arm64": "Features"}[runtime.GOARCH]
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		k, v, ok := strings.Cut(lines.Text(), ":")
		if ok && strings.TrimSpace(k) == key {
			return strings.Fields(v)
		}
	}
	return nil
}

// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// recorded is what make bench measured last.
func recorded(t *testing.T) *Report {
	t.Helper()
	r, err := ReadReport("results/results.json")
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// The README, the table and the plots show what was measured last.
func TestRecordedIsShown(t *testing.T) {
	r := recorded(t)
	text, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	want, err := r.InReadme(string(text))
	if err != nil {
		t.Fatal(err)
	}
	if want != string(text) {
		t.Errorf("README.md does not show bench/results/results.json; pno bench table --from bench/results/results.json --readme README.md does that:\n%s", want)
	}
	dir := t.TempDir()
	if err := r.Write(dir); err != nil {
		t.Fatal(err)
	}
	made, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range made {
		a, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join("results", f.Name()))
		if err != nil || f.Name() != "results.json" && string(a) != string(b) {
			t.Errorf("%s is not what results.json says (%v)", f.Name(), err)
		}
	}
	if len(made) != 5 {
		t.Errorf("%d files were made, want JSON, table and three plots", len(made))
	}
}

func TestReadmePlace(t *testing.T) {
	r := recorded(t)
	for _, text := range []string{"", readmeFrom, readmeTo, readmeTo + readmeFrom} {
		if got, err := r.InReadme(text); err == nil {
			t.Errorf("%q: %q", text, got)
		}
	}
	got, err := r.InReadme("a\n" + readmeFrom + "old\n" + readmeTo + "z\n")
	if err != nil || !strings.HasPrefix(got, "a\n"+readmeFrom) || !strings.HasSuffix(got, readmeTo+"z\n") || strings.Contains(got, "old") {
		t.Errorf("%q, %v", got, err)
	}
}

func TestThousands(t *testing.T) {
	for f, want := range map[float64]string{0: "0", 472.3: "472", 999.6: "1,000", 1004: "1,000", 16925: "16,900", 63168: "63,200", 123456: "123,000", 1234567: "1,230,000"} {
		if got := thousands(f); got != want {
			t.Errorf("%v: %s, want %s", f, got, want)
		}
	}
}

func TestCannotWrite(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := CanWrite(file); err == nil {
		t.Error("a file takes results")
	}
	if err := (&Report{}).Write(filepath.Join(file, "x")); err == nil {
		t.Error("a file takes results")
	}
}

func TestLadder(t *testing.T) {
	for most, want := range map[int][]int{
		60_000: {20_000, 30_000, 40_000, 50_000, 60_000},
		20_000: {4_000, 8_000, 12_000, 16_000, 20_000},
		4:      {1, 1, 2, 3, 4},
		0:      {1, 1, 1, 1, 1},
	} {
		if got := ladder(most); !slices.Equal(got, want) {
			t.Errorf("up to %d: %v, want %v", most, got, want)
		}
	}
}

func TestMedianAndSpread(t *testing.T) {
	same := func(f float64) float64 { return f }
	for _, tc := range []struct {
		runs           []float64
		median, spread float64
	}{
		{[]float64{3}, 3, 0},
		{[]float64{5, 1}, 3, 4.0 / 3},
		{[]float64{9, 1, 2}, 2, 4},
		{[]float64{0, 0, 0}, 0, 0},
	} {
		if m, s := medianOf(tc.runs, same), spreadOf(tc.runs, same); m != tc.median || s != tc.spread {
			t.Errorf("%v: median %v, spread %v", tc.runs, m, s)
		}
	}
}

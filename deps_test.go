// SPDX-License-Identifier: Apache-2.0

package pno_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestDependencyLists compares what each command links with docs/deps/, so that
// a new dependency is seen in review as a line of its own. make gen rewrites
// the lists.
func TestDependencyLists(t *testing.T) {
	mains, err := filepath.Glob("cmd/*/main.go")
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for _, main := range mains {
		name := filepath.Base(filepath.Dir(main))
		known[name] = true
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			compareGolden(t, filepath.Join("docs", "deps", name+".txt"), dependencyList(t, name))
		})
	}
	lists, err := filepath.Glob("docs/deps/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, list := range lists {
		if name := strings.TrimSuffix(filepath.Base(list), ".txt"); !known[name] {
			t.Errorf("%s: there is no cmd/%s", list, name)
		}
	}
}

// dependencyList names every package outside the standard library that a command
// links, on the two machines we build for, one a line; a package that only one
// of them links is marked with it.
func dependencyList(t *testing.T, command string) []byte {
	arches := []string{"amd64", "arm64"}
	on := map[string][]string{}
	for _, arch := range arches {
		env := []string{"GOOS=linux", "GOARCH=" + arch, "CGO_ENABLED=0"}
		for _, p := range goList(t, env, "./cmd/"+command) {
			if !p.Standard {
				on[p.ImportPath] = append(on[p.ImportPath], arch)
			}
		}
	}
	var lines []string
	for p, where := range on {
		if len(where) < len(arches) {
			p += " (" + where[0] + ")"
		}
		lines = append(lines, p)
	}
	slices.Sort(lines)
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Packages linked into %s, without the standard library. Written by make gen.\n", command)
	for _, l := range lines {
		fmt.Fprintln(&b, l)
	}
	return b.Bytes()
}

func compareGolden(t *testing.T, file string, got []byte) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("no list to compare with; run make gen: %v", err)
	}
	wantLines, gotLines := strings.Split(string(want), "\n"), strings.Split(string(got), "\n")
	for _, l := range gotLines {
		if !slices.Contains(wantLines, l) {
			t.Errorf("%s: linked but not listed: %s", file, l)
		}
	}
	for _, l := range wantLines {
		if !slices.Contains(gotLines, l) {
			t.Errorf("%s: listed but not linked: %s", file, l)
		}
	}
	if t.Failed() {
		t.Log("if this is meant, run make gen and commit the list")
	}
}

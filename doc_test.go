// SPDX-License-Identifier: Apache-2.0

// Package pno_test guards the repository as a whole: what every source file and
// every package owes, who may import whom, and what each binary links. Nothing
// here runs the product.
package pno_test

import (
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the checked-in lists instead of comparing with them")

// notSource are directories that hold what was built, fetched or made up.
var notSource = []string{".git", "bin", "tools/bin", "shim/build"}

// sources calls visit for every file of the tree whose base name matches one of
// the patterns. Paths are relative to the root and use slashes.
func sources(t *testing.T, visit func(path string, content []byte), patterns ...string) {
	t.Helper()
	n := 0
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		path = filepath.ToSlash(path)
		if d.IsDir() {
			if slices.Contains(notSource, path) || d.Name() == "testdata" {
				return fs.SkipDir
			}
			return nil
		}
		if !d.Type().IsRegular() || !matchesAny(d.Name(), patterns) {
			return nil
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		n++
		visit(path, content)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if n == 0 {
		t.Fatalf("no file matches %q: the test looks in the wrong place", patterns)
	}
}

func matchesAny(name string, patterns []string) bool {
	for _, p := range patterns {
		if ok, err := filepath.Match(p, name); err != nil {
			panic(err)
		} else if ok {
			return true
		}
	}
	return false
}

var generatedLine = regexp.MustCompile(`(?m)^(//|/\*|#) Code generated .* DO NOT EDIT\.( \*/)?$`)

// generated tells whether a program wrote the file.
func generated(content []byte) bool {
	return generatedLine.Match(content[:min(len(content), 4096)])
}

// firstLines returns up to n lines of content.
func firstLines(content []byte, n int) string {
	lines := strings.SplitAfterN(string(content), "\n", n+1)
	return strings.Join(lines[:min(len(lines), n)], "")
}

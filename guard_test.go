// SPDX-License-Identifier: Apache-2.0

package pno_test

import (
	"bytes"
	"go/format"
	"go/parser"
	"go/token"
	"path"
	"slices"
	"strings"
	"testing"
)

// codeFiles are the files that carry a licence line and a length limit.
var codeFiles = []string{"*.go", "*.c", "*.h", "*.S", "*.def", "*.map", "*.sh", "*.py", "*.proto", "Makefile", "*.mk"}

func TestLicenceHeader(t *testing.T) {
	const want = "SPDX-License-Identifier: Apache-2.0"
	sources(t, func(path string, content []byte) {
		// The interpreter line of a script comes first.
		if !generated(content) && !strings.Contains(firstLines(content, 2), want) {
			t.Errorf("%s: the first line must hold %q", path, want)
		}
	}, codeFiles...)
}

// A file that outgrows this holds more than one idea.
func TestFileLength(t *testing.T) {
	const limit = 700
	sources(t, func(path string, content []byte) {
		if n := bytes.Count(content, []byte("\n")); n > limit && !generated(content) {
			t.Errorf("%s: %d lines, more than %d: split it by idea", path, n, limit)
		}
	}, codeFiles...)
}

func TestFormatted(t *testing.T) {
	sources(t, func(path string, content []byte) {
		want, err := format.Source(content)
		if err != nil {
			t.Errorf("%s: %v", path, err)
		} else if !bytes.Equal(content, want) {
			t.Errorf("%s: not formatted; run gofmt -w %[1]s", path)
		}
	}, "*.go")
}

// Every package says who owns what and who may call it; a directory that holds
// only tests says what they are for.
func TestPackageDoc(t *testing.T) {
	type state struct{ name, doc string }
	packages := map[string]state{}
	sources(t, func(file string, content []byte) {
		f, err := parser.ParseFile(token.NewFileSet(), file, content, parser.PackageClauseOnly|parser.ParseComments)
		if err != nil {
			t.Errorf("%s: %v", file, err)
			return
		}
		dir := path.Dir(file)
		s := packages[dir]
		if !strings.HasSuffix(file, "_test.go") || s.name == "" {
			s.name = f.Name.Name
		}
		if f.Doc != nil {
			s.doc += f.Doc.Text()
		}
		packages[dir] = s
	}, "*.go")
	for dir, s := range packages {
		want := []string{"Package " + s.name + " "}
		if s.name == "main" {
			name := path.Base(dir)
			want = []string{"Command " + name + " ", strings.ToUpper(name[:1]) + name[1:] + " "}
		}
		if !slices.ContainsFunc(want, func(w string) bool { return strings.Contains(s.doc, w) }) {
			t.Errorf("%s: no package comment that begins with %q", dir, want[0])
		}
	}
}

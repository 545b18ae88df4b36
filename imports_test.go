// SPDX-License-Identifier: Apache-2.0

package pno_test

import (
	"encoding/json"
	"errors"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
)

// mayReach is the folder table: which of the module's top-level folders a
// folder may depend on, directly or through others. internal/ is not listed on
// the left: it is judged through whoever imports it.
var mayReach = map[string][]string{
	"offload": {"offload"},
	"proto":   {"proto"},
	"shim":    {"shim", "offload", "internal"},
	"host":    {"host", "offload", "proto", "internal"},
	"dpu":     {"dpu", "offload", "proto", "internal"},
	"crypto":  {"crypto", "proto", "internal"},
	"sim":     {"sim", "offload", "proto", "dpu", "host", "internal"},
}

// stdOnly are the folders that depend on nothing but the standard library.
var stdOnly = []string{"offload"}

type listedPackage struct {
	ImportPath string
	Standard   bool
	Deps       []string
}

// goList returns what `go list -deps` says about the patterns, by import path.
func goList(t *testing.T, env []string, patterns ...string) map[string]listedPackage {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-e", "-deps", "-json=ImportPath,Standard,Deps"}, patterns...)...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v", cmd, err)
	}
	packages := map[string]listedPackage{}
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listedPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return packages
		} else if err != nil {
			t.Fatalf("%v: read output: %v", cmd, err)
		}
		packages[p.ImportPath] = p
	}
}

// folder is the top-level folder of one of our packages; ok is false for others.
func folder(importPath string) (name string, ok bool) {
	rest, ok := strings.CutPrefix(importPath, "pno/")
	name, _, _ = strings.Cut(rest, "/")
	return name, ok
}

func TestFolderImports(t *testing.T) {
	packages := goList(t, nil, "./...")
	for _, p := range packages {
		from, ours := folder(p.ImportPath)
		allowed, ruled := mayReach[from]
		if !ours || !ruled {
			continue
		}
		for _, dep := range p.Deps {
			to, depIsOurs := folder(dep)
			switch {
			case depIsOurs && !slices.Contains(allowed, to):
				t.Errorf("%s depends on %s; %s/ may reach only %v", p.ImportPath, dep, from, allowed)
			case !depIsOurs && !packages[dep].Standard && slices.Contains(stdOnly, from):
				t.Errorf("%s depends on %s; %s/ uses the standard library only", p.ImportPath, dep, from)
			}
		}
	}
}

// depguardRule is a rule of .golangci.yml in the one form that we use: it holds
// everywhere but below the folders listed as "!**/folder/**", and in tests if
// "!$test" is not listed.
type depguardRule struct {
	Files []string `yaml:"files"`
	Deny  []struct {
		Pkg  string `yaml:"pkg"`
		Desc string `yaml:"desc"`
	} `yaml:"deny"`
}

func (r depguardRule) covers(t *testing.T, file string) bool {
	for _, f := range r.Files {
		if f == "!$test" {
			if strings.HasSuffix(file, "_test.go") {
				return false
			}
			continue
		}
		dir, ok1 := strings.CutPrefix(f, "!**/")
		dir, ok2 := strings.CutSuffix(dir, "/**")
		if !ok1 || !ok2 {
			t.Fatalf(".golangci.yml: pattern %q is not of the form !**/folder/**", f)
		}
		if strings.HasPrefix(file, dir+"/") {
			return false
		}
	}
	return true
}

// The linter's own rules, held here too so that the suite needs no linter.
func TestRawImports(t *testing.T) {
	content, err := os.ReadFile(".golangci.yml")
	if err != nil {
		t.Fatal(err)
	}
	var config struct {
		Linters struct {
			Settings struct {
				Depguard struct {
					Rules map[string]depguardRule
				}
			}
		}
	}
	if err := yaml.Unmarshal(content, &config); err != nil {
		t.Fatalf("read .golangci.yml: %v", err)
	}
	rules := config.Linters.Settings.Depguard.Rules
	if len(rules) == 0 {
		t.Fatal(".golangci.yml has no depguard rules")
	}
	sources(t, func(file string, content []byte) {
		f, err := parser.ParseFile(token.NewFileSet(), file, content, parser.ImportsOnly)
		if err != nil {
			t.Errorf("%s: %v", file, err)
			return
		}
		for _, spec := range f.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			for name, rule := range rules {
				for _, deny := range rule.Deny {
					if deny.Pkg == imported && !generated(content) && rule.covers(t, file) {
						t.Errorf("%s imports %s: %s (rule %s of .golangci.yml)", file, imported, deny.Desc, name)
					}
				}
			}
		}
	}, "*.go")
	for name, rule := range rules {
		for _, f := range rule.Files {
			if dir := strings.Trim(f, "!*/"); f != "!$test" {
				if _, err := os.Stat(path.Clean(dir)); err != nil {
					t.Errorf(".golangci.yml: rule %s excepts %s, which is not there", name, dir)
				}
			}
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

// Package cheader holds, in tests, that the structs and constants of a C header
// are those of Go: a C program prints them, and the same text is made from the Go
// side. A Check belongs to one test.
package cheader

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// Check gathers what is compared.
type Check struct {
	t       testing.TB
	c, want strings.Builder
}

// New begins a check of a header.
func New(t testing.TB, header string) *Check {
	k := &Check{t: t}
	fmt.Fprintf(&k.c, "#include <stdio.h>\n#include %q\nint main(void) {\n", header)
	return k
}

// Value compares a number.
func (k *Check) Value(expr string, value uint64) {
	fmt.Fprintf(&k.c, "printf(\"%%s %%llu\\n\", \"%s\", (unsigned long long)(%s));\n", expr, expr)
	fmt.Fprintf(&k.want, "%s %d\n", expr, value)
}

// Text compares a string.
func (k *Check) Text(expr, value string) {
	fmt.Fprintf(&k.c, "puts(%s);\n", expr)
	fmt.Fprintln(&k.want, value)
}

// Struct compares the size of a struct and the places of its fields, which have
// their names in C as tags. It has no holes.
func (k *Check) Struct(name string, v any) {
	k.t.Helper()
	typ := reflect.Indirect(reflect.ValueOf(v)).Type()
	k.Value("sizeof(struct "+name+")", uint64(typ.Size()))
	if n := binary.Size(v); n != int(typ.Size()) {
		k.t.Errorf("%s: %d bytes packed, %d in memory: a hole", name, n, typ.Size())
	}
	for _, f := range reflect.VisibleFields(typ) {
		tag, offset := f.Tag.Get("c"), f.Offset
		if len(f.Index) > 1 {
			of := typ.Field(f.Index[0])
			if of.Tag.Get("c") != "" {
				continue // a struct in C, too
			}
			offset += of.Offset
		}
		if tag != "" {
			k.Value("offsetof(struct "+name+", "+tag+")", uint64(offset))
		}
	}
}

// Run compares, with the header's folder given.
func (k *Check) Run(folder string) {
	k.t.Helper()
	cc, err := exec.LookPath("cc")
	if err != nil {
		k.t.Skip("no C compiler to read the header with")
	}
	k.c.WriteString("return 0;\n}\n")
	dir := k.t.TempDir()
	src, bin := filepath.Join(dir, "a.c"), filepath.Join(dir, "a")
	if err := os.WriteFile(src, []byte(k.c.String()), 0o600); err != nil {
		k.t.Fatal(err)
	}
	if out, err := exec.Command(cc, "-std=c11", "-Wall", "-Wextra", "-Werror", "-I"+folder, "-o", bin, src).CombinedOutput(); err != nil {
		k.t.Fatalf("compile: %v\n%s", err, out)
	}
	out, err := exec.Command(bin).Output()
	if err != nil {
		k.t.Fatal(err)
	}
	got, want := strings.Split(string(out), "\n"), strings.Split(k.want.String(), "\n")
	for i := range want {
		if i >= len(got) || got[i] != want[i] {
			k.t.Fatalf("C says %q, Go says %q", got[min(i, len(got)-1)], want[i])
		}
	}
}

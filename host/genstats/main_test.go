// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

func TestTablesAreCurrent(t *testing.T) {
	def, err := os.ReadFile("../" + path)
	if err != nil {
		t.Fatal(err)
	}
	for file, make := range outputs {
		want, err := make(def)
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join("..", file))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s is not what shim/stats.def says; run go generate ./host", file)
		}
	}
}

func TestLineThatIsNotUnderstood(t *testing.T) {
	for _, def := range []string{"", "\nPNO_STAT(two, \"a\"\n"} {
		if _, err := table([]byte(def)); err == nil {
			t.Errorf("%q is taken", def)
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"testing"
)

func TestTableIsCurrent(t *testing.T) {
	want, err := table("../../shim/stats.def")
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile("../counters.go")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("host/counters.go is not what shim/stats.def says; run go generate ./host")
	}
}

// SPDX-License-Identifier: Apache-2.0

//go:build cgo && linux

package libcrypto

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// What the arena does for libcrypto is tried in C, by a program that has no other
// use of it.
func TestArena(t *testing.T) {
	cc := os.Getenv("CC")
	if cc == "" {
		cc = "cc"
	}
	bin := filepath.Join(t.TempDir(), "arena")
	if out, err := exec.Command(cc, "-std=gnu11", "-g", "-Wall", "-Wextra", "-Werror", "-I.", "-o", bin, "testdata/arena.c", "-lcrypto", "-pthread").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if out, err := exec.Command(bin).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

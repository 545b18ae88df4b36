// SPDX-License-Identifier: Apache-2.0

package target

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const client = `package main
import "pno/shim"
func main() { if l, err := shim.Listen("tcp", "127.0.0.1:0"); err == nil { l.Close() } }
`

const plain = `package main
import "net"
func main() { if l, err := net.Listen("tcp", "127.0.0.1:0"); err == nil { l.Close() } }
`

// goProgram builds one within this module, stripped.
func goProgram(t *testing.T, source string, env ...string) string {
	t.Helper()
	dir := t.TempDir()
	main, out := filepath.Join(dir, "main.go"), filepath.Join(dir, "program")
	if err := os.WriteFile(main, []byte(source), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", "build", "-ldflags=-s -w", "-o", out, main)
	cmd.Env = append(os.Environ(), env...)
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	return out
}

func cProgram(t *testing.T, flags ...string) string {
	t.Helper()
	dir := t.TempDir()
	main, out := filepath.Join(dir, "main.c"), filepath.Join(dir, "program")
	if err := os.WriteFile(main, []byte("int main(void) { return 0; }\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if b, err := exec.Command("gcc", append(flags, "-o", out, main)...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	return out
}

func script(t *testing.T, content string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(out, []byte(content), 0o755); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestCheck(t *testing.T) {
	static := cProgram(t, "-static")
	for _, tc := range []struct {
		name, path string
		want       Reason
		ok         bool
	}{
		{"dynamic", cProgram(t), "", true},
		{"static", static, Static, false},
		{"static, position independent", cProgram(t, "-static-pie", "-fPIE"), Static, false},
		{"Go", goProgram(t, plain, "CGO_ENABLED=0"), Go, false},
		{"Go with cgo", goProgram(t, plain, "CGO_ENABLED=1"), Go, false},
		{"Go with the client", goProgram(t, client, "CGO_ENABLED=0"), "", true},
		{"Go with cgo and the client", goProgram(t, client, "CGO_ENABLED=1"), "", true},
		{"another machine", foreign(t), Machine, false},
		{"shell script", script(t, "#!/bin/sh\n"), "", true},
		{"script of env", script(t, "#!/usr/bin/env sh\n"), "", true},
		{"script of a static program", script(t, "#!"+static+" -x\n"), Static, false},
		{"no program", script(t, "hello\n"), "", false},
		{"empty", script(t, ""), "", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := Check(tc.path)
			var e *Error
			if tc.ok != (err == nil) || err != nil && (!errors.As(err, &e) || e.Reason != tc.want) {
				t.Errorf("%v, want reason %q", err, tc.want)
			}
		})
	}
}

// foreign is a program whose header says that it is for a machine that nobody
// has.
func foreign(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(cProgram(t))
	if err != nil {
		t.Fatal(err)
	}
	b[18], b[19] = 8, 0 // EM_MIPS
	return script(t, string(b))
}

func TestCheckPrivilege(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make files of other users")
	}
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name     string
		uid, gid int
		mode     uint32
		want     string
	}{
		{"plain", 0, 0, 0o755, ""},
		{"set-user-ID of another user", 1000, 0, 0o4755, "is set-user-ID"},
		{"set-user-ID of oneself", 0, 0, 0o4755, ""},
		{"set-group-ID of another group", 0, 1000, 0o2755, "is set-group-ID"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := os.Chown(file, tt.uid, tt.gid); err != nil {
				t.Fatal(err)
			}
			if err := unix.Chmod(file, tt.mode); err != nil {
				t.Fatal(err)
			}
			err := checkPrivilege(file)
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

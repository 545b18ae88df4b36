// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"debug/elf"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"pno/host"
	"pno/host/control/controltest"
)

// TestRunScripts runs testdata/run with two host agents: $HOSTD, which has a
// DPU, and $NODPU, which has none.
func TestRunScripts(t *testing.T) {
	dir := t.TempDir()
	dpu := controltest.Start(t, filepath.Join(dir, "dpu"), 1)
	with := serveHost(t, host.Config{Listen: filepath.Join(dir, "with"), DPU: dpu.Path, RunPolicies: true})
	without := serveHost(t, host.Config{Listen: filepath.Join(dir, "without"), DPU: filepath.Join(dir, "none"),
		RunPolicies: true, DPUWait: time.Millisecond})
	static := staticProgram(t, dir)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/run",
		Setup: func(e *testscript.Env) error {
			for k, v := range map[string]string{"HOSTD": with, "NODPU": without, "STATIC": static, "GOPROGRAM": self, "PNO_LIB": harmlessLibrary(t)} {
				e.Setenv(k, v)
			}
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){"status": cmdStatus},
	})
}

func serveHost(t *testing.T, cfg host.Config) string {
	t.Helper()
	cfg.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
	cfg.SocketMode = 0o666
	s, err := host.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	<-s.Ready()
	return cfg.Listen
}

// staticProgram makes a program without an interpreter: true, with its
// PT_INTERP header made into nothing.
func staticProgram(t *testing.T, dir string) string {
	t.Helper()
	path, err := exec.LookPath("true")
	if err != nil {
		t.Skip(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := elf.NewFile(strings.NewReader(string(b)))
	if err != nil || f.Class != elf.ELFCLASS64 {
		t.Skipf("%s is no 64-bit ELF program: %v", path, err)
	}
	const phoff, phentsize = 64, 56 // of a 64-bit file
	for i, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			f.ByteOrder.PutUint32(b[phoff+i*phentsize:], uint32(elf.PT_NULL))
		}
	}
	out := filepath.Join(dir, "static")
	if err := os.WriteFile(out, b, 0o755); err != nil {
		t.Fatal(err)
	}
	return out
}

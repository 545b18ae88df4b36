// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"pno/internal/admin"
	"pno/internal/admin/admintest"
)

// The scripts below testdata/script run the program as a process of its own,
// against daemons that report fixed numbers.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"offloadctl": main, "fixed-daemons": fixedDaemons})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata/script"})
}

// fixedDaemons serves both sides below the present folder, until it is told to
// end.
func fixedDaemons() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	opts := admin.Options{Log: slog.New(slog.DiscardHandler)}
	done := make(chan error, 2)
	go func() { done <- admin.ServeDPU(ctx, "dpu.sock", admintest.DPU{}, opts) }()
	go func() { done <- admin.ServeHost(ctx, "host.sock", admintest.Host{}, opts) }()
	if err := errors.Join(<-done, <-done); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

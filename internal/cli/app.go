// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Exit codes. They are documented in the root command's help.
const (
	exitOK          = 0
	exitFailed      = 1 // a daemon answered with an error, or the output broke
	exitUsage       = 2 // the command line makes no sense
	exitUnreachable = 3 // no daemon answers
	exitUnhealthy   = 4 // status: a daemon answers and reports a problem
)

// App is one run of offloadctl.
type App struct {
	Stdout, Stderr io.Writer
	Getenv         func(string) string
	Now            func() time.Time

	output   string
	dpuAddr  string
	hostAddr string
	timeout  time.Duration
	// began tells that the command line was understood.
	began bool
}

// New returns an App on the process's own streams.
func New() *App {
	return &App{Stdout: os.Stdout, Stderr: os.Stderr, Getenv: os.Getenv, Now: time.Now}
}

// Main runs a command line, without the program's name, and returns the
// process's exit code.
func (a *App) Main(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := a.newRoot()
	root.SetArgs(args)
	root.SetOut(a.Stdout)
	root.SetErr(a.Stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	if !a.began {
		err = &exitError{exitUsage, err}
		a.output = formatIn(args)
	}
	return a.report(err)
}

// exitError is an error with the exit code that it asks for.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

// errUnhealthy ends status with exitUnhealthy; the problems have been printed.
var errUnhealthy = errors.New("a daemon reports a problem")

// report prints an error in the form that was asked for.
func (a *App) report(err error) int {
	code := exitFailed
	var coded *exitError
	if errors.As(err, &coded) {
		code = coded.code
	}
	if errors.Is(err, errUnhealthy) {
		return code
	}
	msg, reason := err.Error(), exitReason(code)
	if s, ok := status.FromError(err); ok && s.Code() != codes.OK {
		msg, reason = s.Message(), snake(s.Code().String())
	}
	switch a.output {
	case formatJSON, formatYAML:
		// Who reads JSON reads standard output; that it cannot be written
		// leaves the exit code.
		_ = a.writeTree(object{{"error", object{{"code", reason}, {"message", msg}, {"exit_code", code}}}})
	default:
		_, _ = fmt.Fprintf(a.Stderr, "offloadctl: %s\n", msg)
		if code == exitUsage {
			_, _ = fmt.Fprintln(a.Stderr, "offloadctl: try offloadctl --help")
		}
	}
	return code
}

func exitReason(code int) string {
	switch code {
	case exitUsage:
		return "usage"
	case exitUnreachable:
		return "unreachable"
	}
	return "failed"
}

// snake turns a gRPC code's name (NotFound) into JSON's (not_found).
func snake(name string) string {
	var b strings.Builder
	for i, r := range name {
		if i > 0 && r >= 'A' && r <= 'Z' {
			b.WriteByte('_')
		}
		b.WriteRune(r)
	}
	return strings.ToLower(b.String())
}

// warn tells something that does not fail the command.
func (a *App) warn(format string, args ...any) {
	_, _ = fmt.Fprintf(a.Stderr, "offloadctl: warning: "+format+"\n", args...)
}

// run wraps a command's function: from here on, errors are not the command
// line's.
func (a *App) run(f func(context.Context) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, _ []string) error {
		if err := a.checkGlobals(); err != nil {
			return err
		}
		a.began = true
		return f(cmd.Context())
	}
}

// SPDX-License-Identifier: Apache-2.0

// Package daemon is what long-running programs owe to whoever runs them: a log
// in the form that its reader wants, and word to systemd of when the program
// serves, still lives, and stops. Outside systemd the latter does nothing.
//
// Nothing here holds state; any goroutine may call any function.
package daemon

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"pno/internal/config"
)

// LogSettings is the log section of a configuration file.
type LogSettings struct {
	Level  string `yaml:"level"`
	Format string `yaml:"format"`
}

// DefaultLog is what a file without a log section means.
func DefaultLog() LogSettings { return LogSettings{Level: "info", Format: "auto"} }

var levels = map[string]slog.Level{
	"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError,
}

// Validate is called by the configuration loader.
func (s *LogSettings) Validate() error {
	if _, ok := levels[s.Level]; !ok {
		return config.At("level", fmt.Errorf("%q is not a level; use debug, info, warn or error", s.Level))
	}
	switch s.Format {
	case "auto", "text", "json":
		return nil
	}
	return config.At("format", fmt.Errorf("%q is not a format; use auto, text or json", s.Format))
}

// NewLog returns a log on w. Format auto is text for a terminal and JSON for
// anything else.
func NewLog(w io.Writer, s LogSettings) *slog.Logger {
	opts := &slog.HandlerOptions{Level: levels[s.Level]}
	if s.Format == "text" || s.Format == "auto" && terminal(w) {
		return slog.New(slog.NewTextHandler(w, opts))
	}
	return slog.New(slog.NewJSONHandler(w, opts))
}

func terminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// Ready tells systemd that the program serves.
func Ready(log *slog.Logger) { notify(log, daemon.SdNotifyReady) }

// Stopping tells systemd that the program is about to end.
func Stopping(log *slog.Logger) { notify(log, daemon.SdNotifyStopping) }

func notify(log *slog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("systemd was not told", "state", state, "error", err)
	}
}

// Watchdog feeds systemd's watchdog, if the unit has one, until ctx ends, and
// as long as alive says so: a program that hangs is started anew.
func Watchdog(ctx context.Context, log *slog.Logger, alive func() bool) {
	limit, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		log.Warn("systemd's watchdog is not fed", "error", err)
	}
	if err != nil || limit == 0 {
		return
	}
	tick := time.NewTicker(limit / 3)
	defer tick.Stop()
	for {
		if alive() {
			notify(log, daemon.SdNotifyWatchdog)
		} else {
			log.Error("not alive: systemd's watchdog is left to bite", "limit", limit)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

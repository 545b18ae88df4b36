// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"pno/internal/config"
)

func TestLog(t *testing.T) {
	tests := []struct {
		name     string
		settings LogSettings
		want     string
	}{
		{"auto is JSON where there is no terminal", LogSettings{"info", "auto"}, `"msg":"shown"`},
		{"JSON", LogSettings{"warn", "json"}, ""},
		{"text", LogSettings{"info", "text"}, "msg=shown"},
		{"level", LogSettings{"error", "text"}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var b bytes.Buffer
			log := NewLog(&b, tt.settings)
			log.Debug("hidden")
			log.Info("shown")
			if got := b.String(); (tt.want == "") != (got == "") || !strings.Contains(got, tt.want) || strings.Contains(got, "hidden") {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestLogSettings(t *testing.T) {
	for in, want := range map[string]string{
		"level: loud":  `f:1:8: "loud" is not a level; use debug, info, warn or error`,
		"format: fine": `f:1:9: "fine" is not a format; use auto, text or json`,
		"level: debug": "",
	} {
		s := DefaultLog()
		err := config.Parse("f", []byte(in), &s)
		if (err == nil) != (want == "") || err != nil && err.Error() != want {
			t.Errorf("%s: got %v, want %s", in, err, want)
		}
	}
}

// systemd stands for the service manager: it returns what it was told.
func systemd(t *testing.T) func() string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	return func() string {
		_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
		b := make([]byte, 256)
		n, err := conn.Read(b)
		if err != nil {
			return err.Error()
		}
		return string(b[:n])
	}
}

func TestNotify(t *testing.T) {
	told := systemd(t)
	log := slog.New(slog.DiscardHandler)
	Ready(log)
	if got := told(); got != "READY=1" {
		t.Errorf("got %q", got)
	}
	Stopping(log)
	if got := told(); got != "STOPPING=1" {
		t.Errorf("got %q", got)
	}
}

func TestWatchdog(t *testing.T) {
	told := systemd(t)
	t.Setenv("WATCHDOG_USEC", "30000")
	t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
	ctx, cancel := context.WithCancel(t.Context())
	var sick atomic.Bool
	logged := make(chan struct{}, 100)
	log := slog.New(slog.NewTextHandler(writerFunc(func() { logged <- struct{}{} }), nil))
	done := make(chan struct{})
	go func() {
		defer close(done)
		Watchdog(ctx, log, func() bool { return !sick.Load() })
	}()
	for range 3 {
		if got := told(); got != "WATCHDOG=1" {
			t.Errorf("got %q", got)
		}
	}
	sick.Store(true)
	select {
	case <-logged:
	case <-time.After(20 * time.Second):
		t.Error("a program that hangs is not logged")
	}
	cancel()
	<-done
}

type writerFunc func()

func (f writerFunc) Write(p []byte) (int, error) { f(); return len(p), nil }

func TestNoSystemd(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	t.Setenv("WATCHDOG_USEC", "")
	var b bytes.Buffer
	log := slog.New(slog.NewTextHandler(&b, nil))
	Ready(log)
	Watchdog(t.Context(), log, func() bool { t.Error("asked without a watchdog"); return true })
	if b.Len() > 0 {
		t.Errorf("logged %s", &b)
	}
}

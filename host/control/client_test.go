// SPDX-License-Identifier: Apache-2.0

package control_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"pno/host/control"
	"pno/host/control/controltest"
	"pno/offload"
)

// start runs a client against path until the test ends.
func start(t *testing.T, path string, up func(control.Status), down func(uint64, error)) *control.Client {
	t.Helper()
	c := control.New(control.Config{Path: path, Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Up: up, Down: down})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { c.Run(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	return c
}

func waitUp(t *testing.T, c *control.Client) {
	t.Helper()
	if !c.WaitUp(t.Context(), 10*time.Second) {
		t.Fatalf("link did not come up: %+v", c.Status())
	}
}

func TestDo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	controltest.Start(t, path, 2)
	c := start(t, path, nil, nil)
	waitUp(t, c)
	if s := c.Status(); s.Shards != 2 || s.Generation != 1 || s.State != control.Up {
		t.Errorf("status %+v", s)
	}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if _, err := c.Do(t.Context(), &offload.Control{Type: offload.CtlPing}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	_, err := c.Do(t.Context(), &offload.Control{Type: offload.CtlSessionClose, Session: 9})
	var re *control.RequestError
	if !errors.As(err, &re) || re.Text != "unknown session" {
		t.Errorf("got %v", err)
	}
}

func TestReconnect(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	events := make(chan string, 10)
	c := start(t, path,
		func(s control.Status) { events <- fmt.Sprintf("up %d", s.Generation) },
		func(g uint64, _ error) { events <- fmt.Sprintf("down %d", g) })
	if _, err := c.Do(t.Context(), &offload.Control{Type: offload.CtlPing}); !errors.Is(err, control.ErrDown) {
		t.Errorf("without a DPU: %v", err)
	}
	s := controltest.Start(t, path, 1)
	waitUp(t, c)
	s.Down()
	s.Up(t)
	for _, want := range []string{"up 1", "down 1", "up 2"} {
		select {
		case got := <-events:
			if got != want {
				t.Fatalf("got %q, want %q", got, want)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("no %q", want)
		}
	}
	if st := c.Status(); st.Losses != 1 {
		t.Errorf("losses %d", st.Losses)
	}
}

func TestLossFailsWaitingRequest(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	s := controltest.Start(t, path, 1)
	c := start(t, path, nil, nil)
	waitUp(t, c)
	s.Hook(func(m *offload.Control) *offload.Control {
		if m.Type == offload.CtlSessionClose {
			go s.Down()
			time.Sleep(50 * time.Millisecond)
		}
		return nil
	})
	if _, err := c.Do(t.Context(), &offload.Control{Type: offload.CtlSessionClose, Session: 1}); !errors.Is(err, control.ErrDown) {
		var re *control.RequestError
		if !errors.As(err, &re) {
			t.Errorf("got %v", err)
		}
	}
}

func TestVersionRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	s := controltest.Start(t, path, 1)
	s.SetVersion(2 << 16)
	c := start(t, path, nil, nil)
	if c.WaitUp(t.Context(), 5*time.Second) {
		t.Fatal("a DPU with another major version was accepted")
	}
	st := c.Status()
	if st.State != control.Refused || !strings.Contains(st.LastError, "speaks another protocol version") {
		t.Errorf("status %+v", st)
	}
	s.SetVersion(offload.VersionMajor << 16)
	deadline := time.Now().Add(10 * time.Second)
	for c.Status().State != control.Up {
		if time.Now().After(deadline) {
			t.Fatal("link did not come up after the version was right")
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestUnaskedMessageEndsLink(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	s := controltest.Start(t, path, 1)
	c := start(t, path, nil, nil)
	waitUp(t, c)
	s.Hook(func(*offload.Control) *offload.Control { return &offload.Control{Type: "surprise"} })
	if _, err := c.Do(t.Context(), &offload.Control{Type: offload.CtlPing}); !errors.Is(err, control.ErrDown) {
		t.Errorf("got %v", err)
	}
}

// SPDX-License-Identifier: Apache-2.0

package unixsock

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestListen(t *testing.T) {
	serve := func(network string) func(string) error {
		return func(path string) error {
			l, err := net.Listen(network, path)
			if err == nil {
				t.Cleanup(func() { _ = l.Close() })
			}
			return err
		}
	}
	for _, tc := range []struct {
		name   string
		before func(path string) error
		want   string // empty: it works
		inUse  bool
	}{
		{"nothing there", func(string) error { return nil }, "", false},
		{"left by a daemon that was killed", func(path string) error {
			l, err := net.Listen("unixpacket", path)
			if err == nil {
				l.(*net.UnixListener).SetUnlinkOnClose(false)
				err = l.Close()
			}
			return err
		}, "", false},
		{"served", serve("unixpacket"), "another process serves there; stop it, or name another path", true},
		{"served, of another kind", serve("unix"), "another process serves there, of another kind", true},
		{"a file", func(path string) error { return os.WriteFile(path, []byte("precious"), 0o600) }, "not a socket", false},
		{"a link to a file", func(path string) error { return os.Symlink("/etc/hostname", path) }, "not a socket", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "s")
			if err := tc.before(path); err != nil {
				t.Fatal(err)
			}
			before, _ := os.Lstat(path)
			old := syscall.Umask(0o077)
			l, err := Listen(context.Background(), "unixpacket", path, 0o660)
			syscall.Umask(old)
			after, serr := os.Lstat(path)
			if serr != nil {
				t.Fatal(serr)
			}
			if tc.want != "" {
				if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), path) || errors.Is(err, ErrInUse) != tc.inUse {
					t.Errorf("%v, want %q", err, tc.want)
				}
				if !os.SameFile(before, after) {
					t.Error("what was there has been replaced")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			if after.Mode() != os.ModeSocket|0o660 {
				t.Errorf("mode %v", after.Mode())
			}
		})
	}
	for _, path := range []string{"", "/" + strings.Repeat("x", MaxPath)} {
		if _, err := Listen(context.Background(), "unix", path, 0o600); err == nil || !strings.Contains(err.Error(), "1 to 107 bytes") {
			t.Errorf("path of %d bytes: %v", len(path), err)
		}
	}
	if _, err := Listen(context.Background(), "unix", t.TempDir()+"/no/s", 0o600); err == nil || !strings.Contains(err.Error(), "there is no folder") {
		t.Errorf("no folder: %v", err)
	}
}

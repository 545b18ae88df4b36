// SPDX-License-Identifier: Apache-2.0

package host

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestListen(t *testing.T) {
	for _, tc := range []struct {
		name    string
		prepare func(path string) error
		want    string // of the error; none if empty
	}{
		{"nothing there", func(string) error { return nil }, ""},
		{"left by a hostd that is gone", func(path string) error {
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			return unix.Bind(fd, &unix.SockaddrUnix{Name: path})
		}, ""},
		{"another hostd", func(path string) error {
			ln, err := listen(path, 0o600)
			if err == nil {
				t.Cleanup(func() { _ = ln.Close() })
			}
			return err
		}, "another hostd answers there"},
		{"a file", func(path string) error { return os.WriteFile(path, []byte("precious"), 0o600) }, "not a socket"},
		{"a link to a file", func(path string) error { return os.Symlink("/etc/hostname", path) }, "not a socket"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "s")
			if err := tc.prepare(path); err != nil {
				t.Fatal(err)
			}
			ln, err := listen(path, 0o640)
			if err == nil {
				defer func() { _ = ln.Close() }()
			}
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Fatalf("got %v, want %q", err, tc.want)
			}
			fi, err := os.Lstat(path)
			if err != nil {
				t.Fatal(err)
			}
			if tc.want == "" && fi.Mode().Perm() != 0o640 {
				t.Errorf("mode %v", fi.Mode())
			}
		})
	}
}

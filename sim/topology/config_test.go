// SPDX-License-Identifier: Apache-2.0

package topology

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pno/sim/edge"
)

func TestParsePairs(t *testing.T) {
	ap := netip.MustParseAddrPort
	for _, c := range []struct {
		name  string
		parse func(string) (edge.Mapping, error)
		in    string
		want  edge.Mapping
		ok    bool
	}{
		{"publish", ParsePublish, "127.0.0.1:8080=198.18.0.2:80",
			edge.Mapping{Outside: ap("127.0.0.1:8080"), Inside: ap("198.18.0.2:80")}, true},
		{"publish IPv6", ParsePublish, "[::1]:0=[2001:2::2]:80",
			edge.Mapping{Outside: ap("[::1]:0"), Inside: ap("[2001:2::2]:80")}, true},
		{"forward", ParseForward, "198.18.0.100:9000=127.0.0.1:9001",
			edge.Mapping{Outside: ap("127.0.0.1:9001"), Inside: ap("198.18.0.100:9000")}, true},
		{"no pair", ParsePublish, "127.0.0.1:8080", edge.Mapping{}, false},
		{"no port", ParsePublish, "127.0.0.1=198.18.0.2:80", edge.Mapping{}, false},
		{"no inside port", ParsePublish, "127.0.0.1:1=198.18.0.2", edge.Mapping{}, false},
		{"name", ParseForward, "localhost:1=198.18.0.2:1", edge.Mapping{}, false},
		{"large port", ParseForward, "198.18.0.2:70000=127.0.0.1:1", edge.Mapping{}, false},
		{"empty", ParseForward, "", edge.Mapping{}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := c.parse(c.in)
			if (err == nil) != c.ok {
				t.Fatalf("error %v", err)
			}
			if c.ok && got != c.want {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
		})
	}
}

func TestWorkdirs(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	one, err := newWorkdir()
	if err != nil {
		t.Fatal(err)
	}
	two, err := newWorkdir() // sweeps, and must leave the first one alone
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range []*workdir{one, two} {
		if _, err := os.Stat(w.file(lockName)); err != nil {
			t.Errorf("directory in use was swept: %v", err)
		}
	}
	_ = one.lock.Close() // as when its process is killed
	two.remove()
	three, err := newWorkdir()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(one.path); !os.IsNotExist(err) {
		t.Errorf("what was left behind is still there: %v", err)
	}
	three.remove()
	if left, _ := filepath.Glob(filepath.Join(os.TempDir(), "*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestWorkdirFitsASocket(t *testing.T) {
	long := filepath.Join(t.TempDir(), strings.Repeat("x", 80))
	if err := os.Mkdir(long, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", long)
	w, err := newWorkdir()
	if err != nil {
		t.Fatal(err)
	}
	defer w.remove()
	if n := len(w.path + longestName); n > maxSockPath {
		t.Errorf("%d bytes of socket path, at most %d fit", n, maxSockPath)
	}
}

func TestBadConfig(t *testing.T) {
	cfg := Config{Addresses: []netip.Prefix{edgeAddresses[0]}}
	if s, err := Start(cfg); err == nil {
		s.Stop()
		t.Error("the edge's address was accepted for the DPU")
	}
}

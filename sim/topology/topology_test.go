// SPDX-License-Identifier: Apache-2.0

package topology

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"pno/sim/edge"
	"pno/sim/pcie"
	"pno/sim/wire"
)

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// TestStartStopLeavesNothing starts simulations of every kind twice: after the
// second round there must be no more descriptors, goroutines and files than
// after the first.
func TestStartStopLeavesNothing(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	bf2, err := pcie.ByName("bluefield2")
	if err != nil {
		t.Fatal(err)
	}
	kinds := []Config{
		{},
		{Shards: 3},
		{PCIe: bf2},
		{Faults: wire.Faults{Loss: 0.1, Delay: time.Millisecond}, Publish: []edge.Mapping{{
			Outside: netip.MustParseAddrPort("127.0.0.1:0"), Inside: netip.MustParseAddrPort("198.18.0.2:80"),
		}}},
	}
	round := func() {
		for _, cfg := range kinds {
			s, err := Start(cfg)
			if err != nil {
				t.Fatal(err)
			}
			s.Stop()
			s.Stop() // nothing is left to do
		}
	}
	round()
	time.Sleep(200 * time.Millisecond) // gVisor's goroutines end a moment after Destroy
	files, goroutines := openFiles(t), runtime.NumGoroutine()
	round()
	settled := func() bool { return openFiles(t) <= files && runtime.NumGoroutine() <= goroutines }
	for end := time.Now().Add(20 * time.Second); !settled(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			stacks := make([]byte, 1<<20)
			t.Fatalf("%d files and %d goroutines after one round, %d and %d after two:\n%s", files, goroutines,
				openFiles(t), runtime.NumGoroutine(), stacks[:runtime.Stack(stacks, true)])
		}
	}
	if left, _ := os.ReadDir(os.TempDir()); len(left) > 0 {
		t.Errorf("files left behind: %v", left)
	}
}

// TestRefusedBehindTheDPU connects where nothing listens: the DPU's stack
// answers, across a wire with many shards' queues, and the client sees it.
func TestRefusedBehindTheDPU(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	for _, inside := range []string{"198.18.0.2:81", "[2001:2::2]:81"} {
		s, err := Start(Config{Shards: 4, Publish: []edge.Mapping{{
			Outside: netip.MustParseAddrPort("127.0.0.1:0"), Inside: netip.MustParseAddrPort(inside),
		}}})
		if err != nil {
			t.Fatal(err)
		}
		for i := range 8 { // other ports, other shards
			if err := readAll(s.Published()[0]); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("%s, attempt %d: %v, want a reset", inside, i, err)
			}
		}
		if r := s.Report(); r.Edge.Failed != 8 || r.Wire.ToEdge.Packets == 0 {
			t.Errorf("%s: edge %+v, wire %+v", inside, r.Edge, r.Wire)
		}
		s.Stop()
		if r := s.Report(); r.Edge.Failed != 8 {
			t.Errorf("after Stop the report says %+v", r.Edge)
		}
	}
}

// readAll connects and reads to the end. A reset may come as early as in
// connect.
func readAll(from netip.AddrPort) error {
	c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(from))
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	_, err = io.ReadAll(c)
	return err
}

func TestStartTellsWhatFailed(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	_, err = Start(Config{Publish: []edge.Mapping{{
		Outside: l.Addr().(*net.TCPAddr).AddrPort(), Inside: netip.MustParseAddrPort("198.18.0.2:80"),
	}}})
	if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), l.Addr().String()) {
		t.Errorf("error %v, want the address that is in use", err)
	}
	if left, _ := os.ReadDir(os.TempDir()); len(left) > 0 {
		t.Errorf("files left behind: %v", left)
	}
}

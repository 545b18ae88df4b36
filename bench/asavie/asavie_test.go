// SPDX-License-Identifier: Apache-2.0

// Package asavie_test holds the AF_XDP library asavie/xdp against pno's own
// driver: what each costs a frame, and the reasons why the library is not the
// driver. The reasons are tests, so that a version of the library without them
// makes itself known; docs/dependencies.md quotes their output.
package asavie_test

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/asavie/xdp"

	"pno/dpu/link"
	"pno/dpu/xsk"
	"pno/internal/netns"
)

const frameLen = 60

// vethPair returns the namespace that holds a, one end of a pair whose other
// end is up and takes every frame.
func vethPair(t testing.TB) *netns.NS {
	near, far := netns.New(t, "near"), netns.New(t, "far")
	netns.VethPair(t, near, "a", far, "b")
	return near
}

func openLibrary(t testing.TB, n *netns.NS) *xdp.Socket {
	t.Helper()
	var s *xdp.Socket
	n.Do(func() {
		i, err := net.InterfaceByName("a")
		if err != nil {
			t.Fatal(err)
		}
		if s, err = xdp.NewSocket(i.Index, 0, nil); err != nil {
			t.Fatalf("open asavie/xdp socket: %v", err)
		}
	})
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func openDriver(t testing.TB, n *netns.NS) link.Queue {
	t.Helper()
	var d *xsk.Device
	n.Do(func() {
		var err error
		if d, err = xsk.Open(xsk.Options{Interface: "a"}); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d.Queues()[0]
}

// fill writes an Ethernet frame of a protocol that nobody answers.
func fill(frame []byte) {
	clear(frame)
	copy(frame, "\xff\xff\xff\xff\xff\xff\x02\x00\x00\x00\x00\x01\x88\xb5")
}

func BenchmarkTransmit(b *testing.B) {
	for _, batch := range []struct {
		name   string
		frames int
	}{{"one", 1}, {"batch64", 64}} {
		b.Run("asavie/"+batch.name, func(b *testing.B) {
			s := openLibrary(b, vethPair(b))
			b.ReportAllocs()
			for b.Loop() {
				sendLibrary(b, s, batch.frames)
			}
			perFrame(b, batch.frames)
		})
		b.Run("xsk/"+batch.name, func(b *testing.B) {
			q := openDriver(b, vethPair(b))
			b.ReportAllocs()
			for b.Loop() {
				sendDriver(b, q, batch.frames)
			}
			perFrame(b, batch.frames)
		})
	}
}

func sendLibrary(b *testing.B, s *xdp.Socket, frames int) {
	for frames > 0 {
		descs := s.GetDescs(frames)
		for i := range descs {
			descs[i].Len = frameLen
			fill(s.GetFrame(descs[i]))
		}
		frames -= s.Transmit(descs)
		s.Complete(s.NumCompleted())
	}
}

func sendDriver(b *testing.B, q link.Queue, frames int) {
	for frames > 0 {
		for frames > 0 {
			frame := q.TxAlloc()
			if frame == nil {
				break
			}
			fill(frame[:frameLen])
			q.TxCommit(frameLen)
			frames--
		}
		if err := q.Flush(); err != nil {
			b.Fatal(err)
		}
	}
}

func perFrame(b *testing.B, frames int) {
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*frames), "ns/frame")
}

// An arm64 processor may let the kernel see a producer index before the
// descriptor that it covers, unless the store is ordered. None is.
func TestNoOrderedAccessOnArm64(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "arm64.test")
	build := exec.Command("go", "test", "-c", "-o", binary, ".")
	build.Env = append(os.Environ(), "GOOS=linux", "GOARCH=arm64", "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", build, err, out)
	}
	ordered := regexp.MustCompile(`\b(STLR|LDAR|DMB|SWPAL|CASAL|LDADDAL)[A-Z]*\b`)
	count := func(symbols string) (accesses, instructions int) {
		out, err := exec.Command("go", "tool", "objdump", "-s", symbols, binary).Output()
		if err != nil {
			t.Fatalf("disassemble %s: %v", symbols, err)
		}
		return len(ordered.FindAll(out, -1)), strings.Count(string(out), "\n")
	}
	library, all := count(`asavie/xdp\.\(\*Socket\)`)
	t.Logf("asavie/xdp: %d ordered accesses in %d lines of disassembly", library, all)
	if all == 0 {
		t.Error("no method of the library was found: the test looks in the wrong place")
	}
	if library != 0 {
		t.Errorf("asavie/xdp has %d ordered accesses now: look at it again, and at docs/dependencies.md", library)
	}
	if driver, _ := count(`pno/dpu/xsk\.`); driver == 0 {
		t.Error("dpu/xsk has no ordered access: either it is broken, or this test cannot see one")
	} else {
		t.Logf("dpu/xsk: %d ordered accesses", driver)
	}
}

// A link that goes down is an everyday event; the library ends the process.
func TestTransmitPanicsWhenLinkIsDown(t *testing.T) {
	n := vethPair(t)
	s := openLibrary(t, n)
	n.LinkDown("a")
	defer func() {
		r := recover()
		if r == nil {
			t.Error("asavie/xdp does not panic any more: look at it again, and at docs/dependencies.md")
		}
		t.Logf("asavie/xdp panics: %v", r)
	}()
	descs := s.GetDescs(1)
	descs[0].Len = frameLen
	s.Transmit(descs)
}

// The same event through our driver is an error, or nothing at all.
func TestDriverSurvivesLinkDown(t *testing.T) {
	n := vethPair(t)
	q := openDriver(t, n)
	n.LinkDown("a")
	fill(q.TxAlloc()[:frameLen])
	q.TxCommit(frameLen)
	t.Logf("dpu/xsk flush with the link down: %v", q.Flush())
}

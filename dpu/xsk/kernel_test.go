// SPDX-License-Identifier: Apache-2.0

package xsk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"pno/dpu/afpacket"
	"pno/dpu/link"
	"pno/internal/netns"
)

// frameOf is a frame of an EtherType, with the rest empty.
func frameOf(etherType uint16, size int) []byte {
	f := make([]byte, size)
	copy(f, []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2})
	binary.BigEndian.PutUint16(f[12:], etherType)
	return f
}

func sendOn(t testing.TB, q link.Queue, frame []byte) {
	t.Helper()
	buf := q.TxAlloc()
	if buf == nil {
		t.Fatal("no room to transmit")
	}
	q.TxCommit(copy(buf, frame))
	for end := time.Now().Add(20 * time.Second); ; {
		if err := q.Flush(); err != nil {
			t.Fatal(err)
		}
		if !q.TxPending() {
			return
		}
		if time.Now().After(end) {
			t.Fatal("frame is not sent")
		}
	}
}

// receiveOn waits a moment for a frame of an EtherType.
func receiveOn(t testing.TB, q link.Queue, etherType uint16, wait time.Duration) bool {
	t.Helper()
	frames := make([][]byte, 16)
	for end := time.Now().Add(wait); ; time.Sleep(time.Millisecond) {
		n, err := q.Recv(frames)
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, f := range frames[:n] {
			found = found || binary.BigEndian.Uint16(f[12:]) == etherType
		}
		q.Release()
		if found || time.Now().After(end) {
			return found
		}
	}
}

func openPacketIn(t testing.TB, n *netns.NS, ifname string) *afpacket.Device {
	t.Helper()
	var d *afpacket.Device
	var err error
	n.Do(func() { d, err = afpacket.Open(afpacket.Options{Interface: ifname}) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func TestProgramVerdicts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("loading XDP programs needs root")
	}
	const unbound, other = xdpPass, xdpDrop // no socket is registered
	s, err := loadSteering(4, unbound, other)
	if errors.Is(err, unix.ENOSYS) {
		t.Skip("loading XDP programs needs the bpf system call, which user-mode emulation does not have")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	for _, c := range []struct {
		name      string
		etherType uint16
		want      uint32
	}{
		{"IPv4", unix.ETH_P_IP, unbound},
		{"IPv6", unix.ETH_P_IPV6, unbound},
		{"ARP", unix.ETH_P_ARP, unbound},
		{"VLAN", unix.ETH_P_8021Q, other},
		{"LLDP", 0x88cc, other},
		{"byte-swapped IPv4", 0x0008, other},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, _, err := s.program.Test(frameOf(c.etherType, 64))
			if err != nil {
				t.Fatal(err)
			}
			if got != c.want {
				t.Fatalf("verdict %d, want %d", got, c.want)
			}
		})
	}
}

func TestOtherFramesReachKernelOnlyIfAsked(t *testing.T) {
	const lldp = 0x88cc
	for _, pass := range []bool{false, true} {
		a, b := netns.New(t, "a"), netns.New(t, "b")
		netns.VethPair(t, a, "eth0", b, "eth0")
		from := openPacketIn(t, a, "eth0")
		openIn(t, b, Options{Interface: "eth0", PassOther: pass})
		kernel := openPacketIn(t, b, "eth0")
		sendOn(t, from.Queues()[0], frameOf(lldp, 64))
		if got := receiveOn(t, kernel.Queues()[0], lldp, 100*time.Millisecond); got != pass {
			t.Errorf("PassOther %v: kernel received other frames: %v", pass, got)
		}
		sendOn(t, from.Queues()[0], frameOf(unix.ETH_P_IP, 64))
		if receiveOn(t, kernel.Queues()[0], unix.ETH_P_IP, 20*time.Millisecond) {
			t.Errorf("PassOther %v: kernel received IPv4", pass)
		}
	}
}

func TestQueuesFollowReceiveQueues(t *testing.T) {
	const queues = 3
	open := map[string]func(*netns.NS) link.Device{
		"xsk":      func(n *netns.NS) link.Device { return openIn(t, n, Options{Interface: "eth0"}) },
		"afpacket": func(n *netns.NS) link.Device { return openPacketIn(t, n, "eth0") },
	}
	for name, receiver := range open {
		a, b := netns.New(t, "a"), netns.New(t, "b")
		netns.VethPairWith(t, a, "eth0", b, "eth0", netns.VethOptions{Queues: queues})
		from, to := open["xsk"](a), receiver(b)
		if len(from.Queues()) != queues || len(to.Queues()) != queues {
			t.Fatalf("%s: %d and %d queues, want %d", name, len(from.Queues()), len(to.Queues()), queues)
		}
		for i, q := range from.Queues() {
			sendOn(t, q, frameOf(unix.ETH_P_IP, 64))
			for j, r := range to.Queues() {
				if i != j && receiveOn(t, r, unix.ETH_P_IP, 5*time.Millisecond) {
					t.Errorf("%s: frame of receive queue %d came on queue %d", name, i, j)
				}
			}
			if !receiveOn(t, to.Queues()[i], unix.ETH_P_IP, 20*time.Second) {
				t.Errorf("%s: frame of receive queue %d did not come", name, i)
			}
		}
	}
}

func TestSomeQueuesLeaveTheRestToTheKernel(t *testing.T) {
	a, b := netns.New(t, "a"), netns.New(t, "b")
	netns.VethPairWith(t, a, "eth0", b, "eth0", netns.VethOptions{Queues: 2})
	from := openIn(t, a, Options{Interface: "eth0"})
	to := openIn(t, b, Options{Interface: "eth0", Queues: 1})
	kernel := openPacketIn(t, b, "eth0")
	if n := len(to.Queues()); n != 1 {
		t.Fatalf("%d queues, want 1", n)
	}
	sendOn(t, from.Queues()[1], frameOf(unix.ETH_P_IP, 64))
	if !receiveOn(t, kernel.Queues()[1], unix.ETH_P_IP, 20*time.Second) {
		t.Error("kernel did not receive on the queue that was not taken")
	}
}

func TestReopenAtOnce(t *testing.T) {
	n, peer := netns.New(t, "a"), netns.New(t, "b")
	netns.VethPair(t, n, "eth0", peer, "eth0")
	maps, fds, pages := ringMappings(t), descriptors(t), residentPages(t)
	const times = 20
	for range times {
		var d *Device
		var err error
		n.Do(func() { d, err = Open(Options{Interface: "eth0"}) })
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if got := ringMappings(t); got != maps {
		t.Errorf("%d mappings of rings, %d before", got, maps)
	}
	frames := (defaultRxFrames + defaultTxFrames) * 2048 / os.Getpagesize()
	if got := residentPages(t) - pages; got > times*frames/4 {
		t.Errorf("%d pages more than before, %d are one device's frames", got, frames)
	}
	if got := descriptors(t); got > fds {
		t.Errorf("%d descriptors, %d before", got, fds)
	}
	if x := xdpOn(t, n, "eth0"); x != nil && x.Attached {
		t.Errorf("XDP program %d is left on the interface", x.ProgId)
	}
}

// ringMappings counts the process's mappings of sockets.
func ringMappings(t testing.TB) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(b), "socket:")
}

// residentPages is how much memory of the process is there.
func residentPages(t testing.TB) (pages int) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/statm")
	if err == nil {
		var size int
		_, err = fmt.Sscan(string(b), &size, &pages)
	}
	if err != nil {
		t.Fatal(err)
	}
	return pages
}

func descriptors(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func xdpOn(t testing.TB, n *netns.NS, ifname string) (x *netlink.LinkXdp) {
	t.Helper()
	n.Do(func() {
		l, err := netlink.LinkByName(ifname)
		if err != nil {
			t.Error(err)
			return
		}
		x = l.Attrs().Xdp
	})
	return x
}

func TestLeftoverProgram(t *testing.T) {
	n, peer := netns.New(t, "a"), netns.New(t, "b")
	netns.VethPair(t, n, "eth0", peer, "eth0")
	s, err := loadSteering(1, xdpDrop, xdpDrop)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	n.Do(func() {
		l, err := netlink.LinkByName("eth0")
		if err == nil {
			err = netlink.LinkSetXdpFdWithFlags(l, s.program.FD(), unix.XDP_FLAGS_DRV_MODE)
		}
		if err != nil {
			t.Error(err)
		}
		if _, err = Open(Options{Interface: "eth0"}); !errors.Is(err, unix.EBUSY) || !strings.Contains(err.Error(), "already") {
			t.Errorf("Open over another program: %v", err)
		}
	})
	if x := xdpOn(t, n, "eth0"); x == nil || !x.Attached {
		t.Error("Open removed a program that it was not asked to replace")
	}
	openIn(t, n, Options{Interface: "eth0", Replace: true})
}

func TestOpenErrors(t *testing.T) {
	n, peer := netns.New(t, "a"), netns.New(t, "b")
	netns.VethPair(t, n, "eth0", peer, "eth0")
	maps, fds := ringMappings(t), descriptors(t)
	for _, c := range []struct {
		name string
		opts Options
		want error
	}{
		{"no such interface", Options{Interface: "eth9"}, nil},
		{"not Ethernet", Options{Interface: "lo", FrameSize: 4096}, nil},
		{"more queues than there are", Options{Interface: "eth0", Queues: 2}, unix.EINVAL},
		{"frame size", Options{Interface: "eth0", FrameSize: 3000}, unix.EINVAL},
		{"frame count", Options{Interface: "eth0", RxFrames: 100}, unix.EINVAL},
		{"too many frames", Options{Interface: "eth0", TxFrames: 1 << 20}, unix.EINVAL},
	} {
		n.Do(func() {
			if d, err := Open(c.opts); err == nil {
				d.Close()
				t.Errorf("%s: opened", c.name)
			} else if c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("%s: %v", c.name, err)
			}
		})
	}
	owner := openIn(t, n, Options{Interface: "eth0"})
	n.Do(func() {
		if _, err := Open(Options{Interface: "eth0"}); !errors.Is(err, unix.EBUSY) {
			t.Errorf("Open of an interface that is taken: %v", err)
		}
	})
	owner.Close()
	if got := ringMappings(t); got != maps {
		t.Errorf("%d mappings of rings, %d before", got, maps)
	}
	if got := descriptors(t); got > fds {
		t.Errorf("%d descriptors, %d before", got, fds)
	}
}

func TestMTUNeedsFrames(t *testing.T) {
	n, peer := netns.New(t, "a"), netns.New(t, "b")
	netns.VethPairWith(t, n, "eth0", peer, "eth0", netns.VethOptions{MTU: 9000})
	n.Do(func() {
		if os.Getpagesize() < 16384 {
			if _, err := Open(Options{Interface: "eth0"}); !errors.Is(err, unix.EMSGSIZE) {
				t.Errorf("Open with MTU 9000: %v", err)
			}
		}
	})
}

func TestOversizedFrameIsDroppedAndCounted(t *testing.T) {
	a, b := netns.New(t, "a"), netns.New(t, "b")
	netns.VethPair(t, a, "eth0", b, "eth0")
	to := openIn(t, b, Options{Interface: "eth0"})
	for _, n := range []*netns.NS{a, b} { // after Open, which sized the frames
		n.Run("ip", "link", "set", "eth0", "mtu", "2000")
	}
	from := openPacketIn(t, a, "eth0")
	sendOn(t, from.Queues()[0], frameOf(unix.ETH_P_IP, 2014))
	sendOn(t, from.Queues()[0], frameOf(unix.ETH_P_IP, 1514))
	if !receiveOn(t, to.Queues()[0], unix.ETH_P_IP, 20*time.Second) {
		t.Fatal("the frame after the oversized one did not come")
	}
	if s := to.Stats(); s.RxDropped != 1 {
		t.Errorf("stats %+v, want one dropped", s)
	}
}

func TestLossIsCounted(t *testing.T) {
	const frames, sent = 64, 100
	a, b := netns.New(t, "a"), netns.New(t, "b")
	netns.VethPair(t, a, "eth0", b, "eth0")
	from := openIn(t, a, Options{Interface: "eth0"})
	to := openIn(t, b, Options{Interface: "eth0", RxFrames: frames})
	for range sent {
		sendOn(t, from.Queues()[0], frameOf(unix.ETH_P_IP, 64))
	}
	// Nobody receives, so that every frame beyond the first ones is lost; the
	// kernels may have sent frames of their own.
	if lost := to.Stats().RxDropped; lost < sent-frames || lost > sent-frames+20 {
		t.Errorf("%d frames lost, want about %d: %+v", lost, sent-frames, to.Info())
	}
}

func TestLinkDownAndUp(t *testing.T) {
	a, b := netns.New(t, "a"), netns.New(t, "b")
	netns.VethPair(t, a, "eth0", b, "eth0")
	from, to := openIn(t, a, Options{Interface: "eth0"}), openIn(t, b, Options{Interface: "eth0"})
	q := from.Queues()[0]
	sendOn(t, q, frameOf(unix.ETH_P_IP, 64))
	a.LinkDown("eth0")
	q.TxAlloc()
	q.TxCommit(64)
	if err := q.Flush(); err != nil {
		t.Fatalf("Flush on a link that is down: %v", err)
	}
	if q.TxPending() {
		t.Error("a link that is down asks its owner to spin")
	}
	a.LinkUp("eth0")
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		sendOn(t, q, frameOf(unix.ETH_P_IP, 64))
		if receiveOn(t, to.Queues()[0], unix.ETH_P_IP, 10*time.Millisecond) && to.Stats().RxPackets > 1 {
			return
		}
		if time.Now().After(end) {
			t.Fatal("nothing comes after the link is up again")
		}
	}
}

func TestOneKickPerBatch(t *testing.T) {
	a, b := netns.New(t, "a"), netns.New(t, "b")
	netns.VethPair(t, a, "eth0", b, "eth0")
	d := openIn(t, a, Options{Interface: "eth0"})
	q := d.Queues()[0]
	for range 200 {
		q.TxAlloc()
		q.TxCommit(64)
	}
	if err := q.Flush(); err != nil {
		t.Fatal(err)
	}
	if n := d.Stats().Kicks; n != 1 {
		t.Fatalf("%d kicks for one batch", n)
	}
	if q.TxPending() {
		t.Skip("this kernel takes 32 frames a system call: XDP_MAX_TX_SKB_BUDGET is missing")
	}
	if err := q.Flush(); err != nil {
		t.Fatal(err)
	}
	if n := d.Stats().Kicks; n != 1 {
		t.Fatalf("%d kicks after a Flush with nothing to send", n)
	}
}

func TestInfo(t *testing.T) {
	n, peer := netns.New(t, "a"), netns.New(t, "b")
	netns.VethPair(t, n, "eth0", peer, "eth0")
	for _, generic := range []bool{false, true} {
		d := openIn(t, n, Options{Interface: "eth0", Generic: generic})
		info := d.Info()
		if info.Native == generic || len(info.Queues) != 1 || info.FrameSize != 2048 {
			t.Errorf("generic %v: %+v", generic, info)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

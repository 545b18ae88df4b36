// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"fmt"
	"net"
	"os"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"pno/internal/ethtool"
)

// VethOptions shapes a veth pair.
type VethOptions struct {
	MTU    int // 0: 1500
	Queues int // receive and transmit queues at both ends; 0: 1

	// KeepOffloads leaves checksum and segmentation offload on. The frames
	// then reach the other end with unfinished checksums and up to 64 KiB
	// long, which only the kernel's own stack understands.
	KeepOffloads bool
}

// VethPair joins two namespaces by a veth pair and brings both ends up.
// Transmit checksum and segmentation offload are off at both ends, so that
// whoever reads raw frames gets what a wire would carry.
func VethPair(t testing.TB, a *NS, aName string, b *NS, bName string) {
	t.Helper()
	VethPairWith(t, a, aName, b, bName, VethOptions{})
}

// VethPairWith is VethPair with options.
func VethPairWith(t testing.TB, a *NS, aName string, b *NS, bName string, o VethOptions) {
	t.Helper()
	if o.MTU == 0 {
		o.MTU = 1500
	}
	if o.Queues == 0 {
		o.Queues = 1
	}
	err := a.do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = aName
		attrs.MTU = o.MTU
		attrs.NumTxQueues, attrs.NumRxQueues = o.Queues, o.Queues
		return netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: attrs, PeerName: bName, PeerMTU: uint32(o.MTU), PeerNamespace: netlink.NsFd(b.fd),
			PeerNumTxQueues: uint32(o.Queues), PeerNumRxQueues: uint32(o.Queues),
		})
	})
	if err != nil {
		t.Fatalf("make veth pair %s/%s - %s/%s: %v", a.name, aName, b.name, bName, err)
	}
	if !o.KeepOffloads {
		a.TxChecksumOff(aName)
		b.TxChecksumOff(bName)
	}
	a.LinkUp(aName)
	b.LinkUp(bName)
}

// LinkUp brings an interface up.
func (n *NS) LinkUp(ifname string) {
	n.t.Helper()
	n.configure("bring up "+ifname, func() error {
		l, err := link(ifname)
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(l)
	})
}

// LinkDown takes an interface down.
func (n *NS) LinkDown(ifname string) {
	n.t.Helper()
	n.configure("take down "+ifname, func() error {
		l, err := link(ifname)
		if err != nil {
			return err
		}
		return netlink.LinkSetDown(l)
	})
}

// MAC returns an interface's hardware address.
func (n *NS) MAC(ifname string) (mac net.HardwareAddr) {
	n.t.Helper()
	n.configure("read address of "+ifname, func() error {
		l, err := link(ifname)
		if err == nil {
			mac = l.Attrs().HardwareAddr
		}
		return err
	})
	return mac
}

// AddrAdd gives an interface an address such as 198.18.0.1/24. It is usable
// at once: duplicate address detection is skipped.
func (n *NS) AddrAdd(ifname, cidr string) {
	n.t.Helper()
	n.configure("add address "+cidr+" to "+ifname, func() error {
		l, err := link(ifname)
		if err != nil {
			return err
		}
		addr, err := netlink.ParseAddr(cidr)
		if err != nil {
			return err
		}
		addr.Flags = unix.IFA_F_NODAD
		return netlink.AddrAdd(l, addr)
	})
}

// RouteAdd routes a prefix, or "default", through a gateway.
func (n *NS) RouteAdd(prefix, via string) {
	n.t.Helper()
	n.configure("route "+prefix+" via "+via, func() error {
		r := &netlink.Route{Gw: net.ParseIP(via)}
		if r.Gw == nil {
			return fmt.Errorf("parse gateway %q", via)
		}
		if prefix != "default" {
			_, dst, err := net.ParseCIDR(prefix)
			if err != nil {
				return err
			}
			r.Dst = dst
		}
		return netlink.RouteAdd(r)
	})
}

// NeighAdd pins the hardware address of a neighbour.
func (n *NS) NeighAdd(ifname, ip string, mac net.HardwareAddr) {
	n.t.Helper()
	n.configure("add neighbour "+ip, func() error {
		l, err := link(ifname)
		if err != nil {
			return err
		}
		return netlink.NeighSet(&netlink.Neigh{
			LinkIndex: l.Attrs().Index, IP: net.ParseIP(ip), HardwareAddr: mac, State: netlink.NUD_PERMANENT,
		})
	})
}

// Sysctl writes a value under /proc/sys, such as net/ipv4/ip_forward.
func (n *NS) Sysctl(path, value string) {
	n.t.Helper()
	n.configure("set "+path, func() error {
		return os.WriteFile("/proc/sys/"+path, []byte(value), 0)
	})
}

// TxChecksumOff makes the kernel finish checksums and cut segments before it
// hands frames to the interface (`ethtool -K … tx off`).
func (n *NS) TxChecksumOff(ifname string) {
	n.t.Helper()
	n.configure("turn off transmit checksum offload of "+ifname, func() error {
		c, err := ethtool.Open()
		if err != nil {
			return err
		}
		defer c.Close()
		return c.Set(ifname, unix.ETHTOOL_STXCSUM, 0)
	})
}

func (n *NS) configure(what string, fn func() error) {
	n.t.Helper()
	if err := n.do(fn); err != nil {
		n.t.Fatalf("%s: %s: %v", n.name, what, err)
	}
}

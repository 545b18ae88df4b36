// SPDX-License-Identifier: Apache-2.0

package afpacket

import (
	"testing"

	"pno/dpu/link"
	"pno/dpu/link/linktest"
	"pno/dpu/xsk"
	"pno/internal/netns"
)

// openIn opens a device inside a namespace, for the duration of the test.
func openIn(t testing.TB, n *netns.NS, o Options) *Device {
	t.Helper()
	var d *Device
	var err error
	n.Do(func() { d, err = Open(o) })
	if err != nil {
		t.Fatal(err)
	}
	closeLater(t, d)
	return d
}

func openXskIn(t testing.TB, n *netns.NS, o xsk.Options) *xsk.Device {
	t.Helper()
	var d *xsk.Device
	var err error
	n.Do(func() { d, err = xsk.Open(o) })
	if err != nil {
		t.Fatal(err)
	}
	closeLater(t, d)
	return d
}

func closeLater(t testing.TB, d link.Device) {
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestConformance(t *testing.T) {
	packet := func(o Options) func(*testing.T, *netns.NS) link.Device {
		o.Interface = "eth0"
		return func(t *testing.T, n *netns.NS) link.Device { return openIn(t, n, o) }
	}
	xdp := func(t *testing.T, n *netns.NS) link.Device {
		return openXskIn(t, n, xsk.Options{Interface: "eth0"})
	}
	for _, c := range []struct {
		name string
		veth netns.VethOptions
		a, b func(*testing.T, *netns.NS) link.Device
	}{
		{name: "both ends", a: packet(Options{}), b: packet(Options{})},
		{name: "from xsk", a: xdp, b: packet(Options{})},
		{name: "to xsk", a: packet(Options{}), b: xdp},
		{name: "two queues", veth: netns.VethOptions{Queues: 2}, a: packet(Options{}), b: packet(Options{})},
		{name: "jumbo frames", veth: netns.VethOptions{MTU: 9000}, a: packet(Options{}), b: packet(Options{})},
		{name: "few frames", a: packet(Options{Frames: 64}), b: packet(Options{Frames: 64})},
		{name: "unfinished checksums", veth: netns.VethOptions{KeepOffloads: true}, a: packet(Options{}), b: packet(Options{})},
	} {
		t.Run(c.name, func(t *testing.T) {
			linktest.Run(t, func(t *testing.T) (a, b link.Device) {
				na, nb := netns.New(t, "a"), netns.New(t, "b")
				netns.VethPairWith(t, na, "eth0", nb, "eth0", c.veth)
				return c.a(t, na), c.b(t, nb)
			})
		})
	}
}

// SPDX-License-Identifier: Apache-2.0

package xsk

import (
	"testing"

	"pno/dpu/link"
	"pno/dpu/link/linktest"
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
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func TestConformance(t *testing.T) {
	for _, c := range []struct {
		name string
		veth netns.VethOptions
		opts Options
	}{
		{name: "driver"},
		{name: "generic", opts: Options{Generic: true}},
		{name: "two queues", veth: netns.VethOptions{Queues: 2}},
		{name: "jumbo frames", veth: netns.VethOptions{MTU: 3000}},
		{name: "few frames", opts: Options{RxFrames: 128, TxFrames: 128}},
	} {
		t.Run(c.name, func(t *testing.T) {
			linktest.Run(t, func(t *testing.T) (a, b link.Device) {
				na, nb := netns.New(t, "a"), netns.New(t, "b")
				netns.VethPairWith(t, na, "eth0", nb, "eth0", c.veth)
				c.opts.Interface = "eth0"
				return openIn(t, na, c.opts), openIn(t, nb, c.opts)
			})
		})
	}
}

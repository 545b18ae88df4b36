// SPDX-License-Identifier: Apache-2.0

package asavie

import (
	"errors"
	"runtime"
	"testing"

	"pno/dpu/link"
	"pno/dpu/link/linktest"
	"pno/internal/netns"
)

func TestConformance(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		if _, err := Open(Options{Interface: "eth0"}); !errors.Is(err, errors.ErrUnsupported) {
			t.Fatalf("Open on %s: %v", runtime.GOARCH, err)
		}
		return
	}
	open := func(t *testing.T, n *netns.NS) link.Device {
		var d link.Device
		var err error
		n.Do(func() { d, err = Open(Options{Interface: "eth0"}) })
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
	for _, c := range []struct {
		name string
		veth netns.VethOptions
	}{
		{name: "one queue"},
		{name: "two queues", veth: netns.VethOptions{Queues: 2}},
	} {
		t.Run(c.name, func(t *testing.T) {
			linktest.Run(t, func(t *testing.T) (a, b link.Device) {
				na, nb := netns.New(t, "a"), netns.New(t, "b")
				netns.VethPairWith(t, na, "eth0", nb, "eth0", c.veth)
				return open(t, na), open(t, nb)
			})
		})
	}
}

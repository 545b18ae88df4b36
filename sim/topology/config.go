// SPDX-License-Identifier: Apache-2.0

package topology

import (
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"

	"pno/host/policy"
	"pno/sim/edge"
	"pno/sim/pcie"
	"pno/sim/wire"
)

// The simulated network: 198.18.0.0/15 is set aside for benchmarks (RFC 2544),
// 2001:2::/48 for the same with IPv6 (RFC 5180).
var (
	DefaultAddresses = []netip.Prefix{
		netip.MustParsePrefix("198.18.0.2/15"), netip.MustParsePrefix("2001:2::2/48"),
	}
	edgeAddresses = []netip.Prefix{
		netip.MustParsePrefix("198.18.0.1/15"), netip.MustParsePrefix("2001:2::1/48"),
	}
)

// Config of a simulation. The zero value is a DPU with one shard on a perfect
// wire that nobody outside can reach.
type Config struct {
	Addresses []netip.Prefix // of the DPU; DefaultAddresses if empty
	Shards    int            // 1 if 0
	Publish   []edge.Mapping
	Forward   []edge.Mapping
	Policy    *policy.Policy // offload everything, and refuse without a DPU, if nil
	PCIe      pcie.Profile   // costs nothing if zero
	Faults    wire.Faults    // of both directions of the wire
	Seed      uint64
	Log       *slog.Logger // of all parts; silent if nil
}

// Policy returns the policy of a simulation that was given none. Without a DPU
// it refuses, since a program that quietly used the kernel would prove
// nothing.
func Policy() *policy.Policy {
	p := policy.Default()
	p.NoDPU = policy.NoDPURefuse
	return p
}

func (c *Config) setDefaults() error {
	if len(c.Addresses) == 0 {
		c.Addresses = DefaultAddresses
	}
	for _, a := range c.Addresses {
		for _, taken := range edgeAddresses {
			if a.Addr() == taken.Addr() {
				return fmt.Errorf("address %v belongs to the far end of the wire", a.Addr())
			}
		}
	}
	for _, m := range c.Publish {
		if !c.has(m.Inside.Addr()) {
			return fmt.Errorf("publish %v: that is not an address of the DPU, which has %v", m.Inside, c.Addresses)
		}
	}
	if c.Shards == 0 {
		c.Shards = 1
	}
	if c.Policy == nil {
		c.Policy = Policy()
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

// has tells whether an address is the DPU's.
func (c *Config) has(ip netip.Addr) bool {
	return slices.ContainsFunc(c.Addresses, func(p netip.Prefix) bool { return p.Addr() == ip.Unmap() })
}

// ParsePublish reads OUTSIDE=INSIDE, as in 127.0.0.1:8080=198.18.0.2:80: the
// address on this machine first.
func ParsePublish(s string) (edge.Mapping, error) {
	left, right, err := parsePair(s)
	return edge.Mapping{Outside: left, Inside: right}, err
}

// ParseForward reads INSIDE=OUTSIDE, as in 198.18.0.100:9000=127.0.0.1:9000:
// the address behind the DPU first.
func ParseForward(s string) (edge.Mapping, error) {
	left, right, err := parsePair(s)
	return edge.Mapping{Inside: left, Outside: right}, err
}

func parsePair(s string) (left, right netip.AddrPort, err error) {
	l, r, ok := strings.Cut(s, "=")
	if !ok {
		return left, right, fmt.Errorf("%q is not ADDRESS:PORT=ADDRESS:PORT", s)
	}
	if left, err = netip.ParseAddrPort(l); err != nil {
		return left, right, fmt.Errorf("%q is not ADDRESS:PORT: %w", l, err)
	}
	if right, err = netip.ParseAddrPort(r); err != nil {
		return left, right, fmt.Errorf("%q is not ADDRESS:PORT: %w", r, err)
	}
	return left, right, nil
}

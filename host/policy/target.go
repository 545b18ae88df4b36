// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Target is a set of addresses and ports: "any", "10.0.0.0/8", "10.1.2.3:80",
// "any:8000-8999", "[2001:db8::/32]:443". A zero Prefix is every address.
type Target struct {
	Prefix         netip.Prefix
	PortLo, PortHi uint16
}

// UnmarshalText parses a target.
func (t *Target) UnmarshalText(b []byte) error {
	s := string(b)
	addr, ports := s, ""
	if inner, ok := strings.CutPrefix(s, "["); ok {
		var tail string
		if addr, tail, ok = strings.Cut(inner, "]"); !ok || (tail != "" && tail[0] != ':') {
			return badTarget(s)
		}
		ports = strings.TrimPrefix(tail, ":")
		if tail == ":" {
			return badTarget(s)
		}
	} else if strings.Count(s, ":") == 1 {
		addr, ports, _ = strings.Cut(s, ":")
		if ports == "" {
			return badTarget(s)
		}
	}
	var err error
	out := Target{PortLo: 0, PortHi: 65535}
	if out.Prefix, err = parsePrefix(addr); err != nil {
		return fmt.Errorf("%w in %q", err, s)
	}
	if ports != "" {
		if out.PortLo, out.PortHi, err = parsePorts(ports); err != nil {
			return fmt.Errorf("%w in %q", err, s)
		}
	}
	*t = out
	return nil
}

func badTarget(s string) error {
	return fmt.Errorf("%q is not a target; write any, 10.0.0.0/8, 10.1.2.3:80, any:8000-8999 or [2001:db8::/32]:443", s)
}

func parsePrefix(s string) (netip.Prefix, error) {
	if s == "any" {
		return netip.Prefix{}, nil
	}
	if !strings.Contains(s, "/") {
		a, err := netip.ParseAddr(s)
		if err != nil || a.Zone() != "" {
			return netip.Prefix{}, fmt.Errorf("%q is neither an address nor \"any\"", s)
		}
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil || p.Addr().Is4In6() {
		return netip.Prefix{}, fmt.Errorf("%q is not a prefix (address/bits)", s)
	}
	if m := p.Masked(); m != p {
		return netip.Prefix{}, fmt.Errorf("prefix %s has bits set beyond /%d (meant: %s?)", s, p.Bits(), m)
	}
	return p, nil
}

func parsePorts(s string) (lo, hi uint16, err error) {
	from, to, ranged := strings.Cut(s, "-")
	if !ranged {
		to = from
	}
	l, err1 := strconv.ParseUint(from, 10, 16)
	h, err2 := strconv.ParseUint(to, 10, 16)
	if err1 != nil || err2 != nil || l > h {
		return 0, 0, fmt.Errorf("%q is not a port or a range low-high from 0 to 65535", s)
	}
	return uint16(l), uint16(h), nil
}

var loopback4, loopback6 = netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")

// Loopback tells whether every address of the target is a loopback address.
func (t *Target) Loopback() bool {
	p := t.Prefix
	return p.IsValid() && (p.Bits() >= 8 && loopback4.Contains(p.Addr()) || p == loopback6)
}

// AddressText and PortsText write the target as the file may say it.
func (t *Target) AddressText() string {
	switch {
	case !t.Prefix.IsValid():
		return "any"
	case t.Prefix.IsSingleIP():
		return t.Prefix.Addr().String()
	}
	return t.Prefix.String()
}

// PortsText is empty for all ports.
func (t *Target) PortsText() string {
	switch {
	case t.PortLo == 0 && t.PortHi == 65535:
		return ""
	case t.PortLo == t.PortHi:
		return strconv.Itoa(int(t.PortLo))
	}
	return fmt.Sprintf("%d-%d", t.PortLo, t.PortHi)
}

func (t *Target) String() string {
	addr, ports := t.AddressText(), t.PortsText()
	if ports == "" {
		return addr
	}
	if strings.Contains(addr, ":") {
		addr = "[" + addr + "]"
	}
	return addr + ":" + ports
}

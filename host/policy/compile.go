// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"net/netip"
)

// Op is what a process does with an address. The numbers are those of the
// attach protocol.
type Op uint8

const (
	Any     Op = 0 // in a rule: both
	Listen  Op = 1 // bind and listen: the local address
	Connect Op = 2 // connect: the peer's address
)

func (o Op) String() string {
	switch o {
	case Listen:
		return "listen"
	case Connect:
		return "connect"
	}
	return "any"
}

// Compiled is a policy for one process: the array that the shim walks.
type Compiled struct {
	Rules   []CompiledRule // first match decides
	Default Action
}

// CompiledRule is one entry, in the shape of the attach protocol.
type CompiledRule struct {
	Op     Op
	Proto  Proto // 0: every one
	Target Target
	Action Action
	Line   int // 0: not from the file
}

func (r CompiledRule) String() string {
	return fmt.Sprintf("%s %s: %s", r.Op, &r.Target, r.Action)
}

// Compile selects what concerns a process. The result has at most MaxRules+2
// entries.
func (p *Policy) Compile(process string) Compiled {
	c := Compiled{Default: p.Default}
	if !p.OffloadLoopback {
		for _, l := range []netip.Prefix{loopback4, loopback6} {
			c.Rules = append(c.Rules, CompiledRule{Op: Any, Target: Target{l, 0, 65535}, Action: Kernel})
		}
	}
	for _, r := range p.Rules {
		if !r.Process.Match(process) {
			continue
		}
		op, target := r.Target()
		c.Rules = append(c.Rules, CompiledRule{Op: op, Proto: r.Proto, Target: target, Action: r.Action, Line: r.Line})
	}
	return c
}

// Match returns the first rule that covers the socket, as the shim finds it.
func (c Compiled) Match(op Op, proto Proto, addr netip.AddrPort) (CompiledRule, bool) {
	ip := addr.Addr().Unmap().WithZone("")
	for _, r := range c.Rules {
		if r.Op != Any && r.Op != op {
			continue
		}
		if r.Proto != 0 && r.Proto != proto {
			continue
		}
		if addr.Port() < r.Target.PortLo || addr.Port() > r.Target.PortHi {
			continue
		}
		if r.Target.Prefix.IsValid() && !r.Target.Prefix.Contains(ip) {
			continue
		}
		return r, true
	}
	return CompiledRule{}, false
}

// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"net/netip"

	"pno/internal/attach"
	"pno/offload"
)

// action is what the policy says about a socket.
type action uint8

const (
	actOffload action = 1
	actKernel  action = 2
	actRefuse  action = 3
)

// policy is the rules that hostd compiled for this program; the first that
// matches decides.
type policy struct {
	rules  []rule
	others action
}

type rule struct {
	ops, proto, family uint8
	lo, hi             uint16
	prefix             netip.Prefix // invalid: every address
	then               action
}

func newPolicy(w *attach.Welcome) policy {
	p := policy{others: action(w.DefaultAction)}
	for _, r := range w.Rules[:w.NRules] {
		out := rule{ops: r.Ops, proto: r.Proto, family: r.Family, lo: r.PortLo, hi: r.PortHi, then: action(r.Action)}
		a := offload.Addr{Family: uint16(r.Family), IP: r.Addr}
		if ip := a.AddrPort().Addr(); ip.IsValid() {
			out.prefix = netip.PrefixFrom(ip, min(int(r.Prefix), ip.BitLen())).Masked()
		}
		p.rules = append(p.rules, out)
	}
	return p
}

// decide finds the action for an address; op is attach.RuleListen or
// attach.RuleConnect.
func (p *policy) decide(op uint8, at netip.AddrPort) action {
	ip := at.Addr().Unmap().WithZone("")
	for i := range p.rules {
		r := &p.rules[i]
		if r.ops&op == 0 || r.proto != 0 && r.proto != offload.ProtoTCP ||
			at.Port() < r.lo || at.Port() > r.hi || r.prefix.IsValid() && !r.prefix.Contains(ip) {
			continue
		}
		return r.then
	}
	return p.others
}

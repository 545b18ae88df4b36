// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"path"
	"slices"

	"pno/internal/config"
)

// Action is what happens to a socket. The numbers are those of the attach
// protocol.
type Action uint8

const (
	Offload Action = 1 // to the DPU
	Kernel  Action = 2 // left to the kernel
	Refuse  Action = 3 // the call fails with EACCES
)

var actionNames = []string{Offload: "offload", Kernel: "kernel", Refuse: "refuse"}

func (a Action) String() string {
	if int(a) < len(actionNames) && a != 0 {
		return actionNames[a]
	}
	return fmt.Sprintf("action %d", a)
}

// UnmarshalText reads an action's name.
func (a *Action) UnmarshalText(b []byte) error {
	for i, n := range actionNames {
		if n != "" && n == string(b) {
			*a = Action(i)
			return nil
		}
	}
	return fmt.Errorf("%q is not an action; use offload, kernel or refuse", b)
}

// MarshalText writes the action's name.
func (a Action) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// NoDPU is what happens to a process that attaches while there is no DPU.
type NoDPU uint8

const (
	NoDPUKernel NoDPU = iota // its sockets are the kernel's
	NoDPURefuse              // its sockets fail with ENETDOWN
)

func (n NoDPU) String() string {
	if n == NoDPURefuse {
		return "refuse"
	}
	return "kernel"
}

// UnmarshalText reads "kernel" or "refuse".
func (n *NoDPU) UnmarshalText(b []byte) error {
	switch string(b) {
	case "kernel":
		*n = NoDPUKernel
	case "refuse":
		*n = NoDPURefuse
	default:
		return fmt.Errorf("%q is not a choice here; use kernel or refuse", b)
	}
	return nil
}

// MarshalText writes the choice's name.
func (n NoDPU) MarshalText() ([]byte, error) { return []byte(n.String()), nil }

// Proto is the protocol that a rule is about. The numbers are IP's.
type Proto uint8

const (
	Both Proto = 0 // the meaning of a rule that says nothing
	TCP  Proto = 6
	UDP  Proto = 17
)

func (p Proto) String() string {
	switch p {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	}
	return "any"
}

// UnmarshalText reads "tcp" or "udp".
func (p *Proto) UnmarshalText(b []byte) error {
	switch string(b) {
	case "tcp":
		*p = TCP
	case "udp":
		*p = UDP
	default:
		return fmt.Errorf("%q is not a protocol; use tcp or udp", b)
	}
	return nil
}

// MaxRules bounds a file so that every process's array fits in one answer of
// the attach protocol.
const MaxRules = 120

// Policy is one policy file.
type Policy struct {
	NoDPU           NoDPU  `yaml:"no_dpu"`
	OffloadLoopback bool   `yaml:"offload_loopback"`
	Default         Action `yaml:"default"`
	Rules           []Rule `yaml:"rules"`

	// Transparent names the programs that may use addresses which are not
	// the DPU's, if they have the capability.
	Transparent []Glob `yaml:"transparent"`

	source string
}

// Rule is one entry of the file: who, doing what, gets which action. The first
// rule that matches decides.
type Rule struct {
	Process Glob    `yaml:"process"`
	Proto   Proto   `yaml:"proto"`
	Listen  *Target `yaml:"listen"`
	Connect *Target `yaml:"connect"`
	Action  Action  `yaml:"action"`

	Line int
}

// Target is what the rule is about.
func (r *Rule) Target() (Op, Target) {
	switch {
	case r.Listen != nil:
		return Listen, *r.Listen
	case r.Connect != nil:
		return Connect, *r.Connect
	}
	return Any, Target{PortHi: 65535}
}

// SetLine is called by the loader.
func (r *Rule) SetLine(n int) { r.Line = n }

// Validate is called by the loader.
func (r *Rule) Validate() error {
	if r.Action == 0 {
		return errors.New("rule without an action; add action: offload, kernel or refuse")
	}
	if r.Listen != nil && r.Connect != nil {
		return config.At("connect", errors.New("a rule has listen or connect, not both; write two rules"))
	}
	return nil
}

// Validate is called by the loader.
func (p *Policy) Validate() error {
	if len(p.Rules) > MaxRules {
		return config.At("rules", fmt.Errorf("%d rules, at most %d are possible; join prefixes or port ranges", len(p.Rules), MaxRules))
	}
	if p.OffloadLoopback {
		return nil
	}
	for _, r := range p.Rules {
		for _, t := range []*Target{r.Listen, r.Connect} {
			if t != nil && r.Action == Offload && t.Loopback() {
				return config.At("rules", fmt.Errorf("the rule on line %d offloads loopback addresses, which stay in the kernel; set offload_loopback: true", r.Line))
			}
		}
	}
	return nil
}

// Glob is a pattern of process names: *, ? and […].
type Glob string

// UnmarshalText checks the pattern.
func (g *Glob) UnmarshalText(b []byte) error {
	if _, err := path.Match(string(b), "x"); err != nil || len(b) == 0 {
		return fmt.Errorf("%q is not a pattern of process names; use letters, *, ? and […]", b)
	}
	*g = Glob(b)
	return nil
}

// Match tells whether a process name fits; an empty pattern fits all.
func (g Glob) Match(name string) bool {
	if g == "" {
		return true
	}
	ok, err := path.Match(string(g), name)
	return ok && err == nil
}

// MayBeTransparent tells whether a program may use addresses that are not the
// DPU's, if it has the capability.
func (p *Policy) MayBeTransparent(process string) bool {
	return slices.ContainsFunc(p.Transparent, func(g Glob) bool { return g.Match(process) })
}

// Default is the policy without a file: TCP beyond loopback is offloaded,
// without a DPU processes use the kernel, and every program may do what its
// capabilities allow.
func Default() *Policy {
	return &Policy{Default: Offload, Transparent: []Glob{"*"}, source: "default"}
}

// Load reads a policy file.
func Load(file string) (*Policy, error) {
	p := Default()
	p.source = file
	if err := config.Load(file, p); err != nil {
		return nil, err
	}
	return p, nil
}

// Parse reads a policy from data; name stands for the file in messages.
func Parse(name string, data []byte) (*Policy, error) {
	p := Default()
	p.source = name
	if err := config.Parse(name, data, p); err != nil {
		return nil, err
	}
	return p, nil
}

// Source is the file's name, or "default".
func (p *Policy) Source() string { return p.source }

// Decision is Explain's answer. Line is 0 when no rule of the file decided;
// Why then says what did.
type Decision struct {
	Action Action `json:"action"`
	Line   int    `json:"line"`
	Why    string `json:"why"`
}

// Explain takes the decision for one socket of a process.
func (p *Policy) Explain(process string, op Op, proto Proto, addr netip.AddrPort) Decision {
	c := p.Compile(process)
	r, ok := c.Match(op, proto, addr)
	switch {
	case !ok:
		return Decision{c.Default, 0, "no rule matches: the default action of " + p.source}
	case r.Line == 0:
		return Decision{r.Action, 0, "loopback stays in the kernel: offload_loopback is false in " + p.source}
	}
	return Decision{r.Action, r.Line, fmt.Sprintf("%s:%d: %s", p.source, r.Line, r)}
}

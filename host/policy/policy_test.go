// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
)

const sample = `no_dpu: refuse
default: kernel
rules:
  - process: nginx*
    listen: any:80-443
    action: offload
  - connect: 10.0.0.0/8:5432
    action: refuse
  - connect: "[2001:db8::/32]"
    action: offload
  - process: redis
    action: offload
`

func TestExplain(t *testing.T) {
	p, err := Parse("p.yaml", []byte(sample))
	if err != nil {
		t.Fatal(err)
	}
	if p.NoDPU != NoDPURefuse || p.Source() != "p.yaml" {
		t.Errorf("no_dpu %v, source %q", p.NoDPU, p.Source())
	}
	tests := []struct {
		name, process string
		op            Op
		addr          string
		want          string
	}{
		{"port in range", "nginx-debug", Listen, "0.0.0.0:80", "offload 4 p.yaml:4: listen any:80-443: offload"},
		{"port out of range", "nginx", Listen, "0.0.0.0:444", "kernel 0 no rule matches: the default action of p.yaml"},
		{"another process", "haproxy", Listen, "0.0.0.0:80", "kernel 0 no rule matches: the default action of p.yaml"},
		{"another operation", "nginx", Connect, "198.18.0.1:80", "kernel 0 no rule matches: the default action of p.yaml"},
		{"prefix and port", "x", Connect, "10.200.0.1:5432", "refuse 7 p.yaml:7: connect 10.0.0.0/8:5432: refuse"},
		{"mapped address", "x", Connect, "[::ffff:10.0.0.1]:5432", "refuse 7 p.yaml:7: connect 10.0.0.0/8:5432: refuse"},
		{"IPv6", "x", Connect, "[2001:db8::7%eth0]:1", "offload 9 p.yaml:9: connect 2001:db8::/32: offload"},
		{"process only", "redis", Connect, "9.9.9.9:1", "offload 11 p.yaml:11: any any: offload"},
		{"loopback first", "redis", Connect, "127.1.2.3:1", "kernel 0 loopback stays in the kernel: offload_loopback is false in p.yaml"},
		{"IPv6 loopback", "nginx", Listen, "[::1]:80", "kernel 0 loopback stays in the kernel: offload_loopback is false in p.yaml"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := p.Explain(tt.process, tt.op, TCP, netip.MustParseAddrPort(tt.addr))
			if got := fmt.Sprintf("%s %d %s", d.Action, d.Line, d.Why); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestTransparent(t *testing.T) {
	for _, tt := range []struct {
		text string
		want string
	}{
		{"default: offload\n", "nginx haproxy x"}, // every program, if it has the capability
		{"transparent: []\n", ""},
		{"transparent: [nginx, \"ha*\"]\n", "nginx haproxy"},
	} {
		p, err := Parse("p.yaml", []byte(tt.text))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, name := range []string{"nginx", "haproxy", "x"} {
			if p.MayBeTransparent(name) {
				got = append(got, name)
			}
		}
		if strings.Join(got, " ") != tt.want {
			t.Errorf("%q: %v, want %s", tt.text, got, tt.want)
		}
	}
	if _, err := Parse("p.yaml", []byte("transparent: [\"[\"]\n")); err == nil || !strings.Contains(err.Error(), "p.yaml:1") {
		t.Errorf("a bad pattern: %v", err)
	}
}

func TestDefaultPolicy(t *testing.T) {
	p := Default()
	for addr, want := range map[string]Action{"0.0.0.0:80": Offload, "[::]:80": Offload, "127.0.0.1:80": Kernel, "[::1]:80": Kernel} {
		if d := p.Explain("nginx", Listen, TCP, netip.MustParseAddrPort(addr)); d.Action != want {
			t.Errorf("%s: got %s, want %s", addr, d.Action, want)
		}
	}
	p.OffloadLoopback = true
	if d := p.Explain("nginx", Connect, TCP, netip.MustParseAddrPort("127.0.0.1:80")); d.Action != Offload {
		t.Errorf("with offload_loopback: %s (%s)", d.Action, d.Why)
	}
}

func TestUDP(t *testing.T) {
	p, err := Parse("p", []byte("rules:\n  - {proto: udp, connect: any:53, action: offload}\n  - {connect: any:53, action: refuse}"))
	if err != nil {
		t.Fatal(err)
	}
	dns, ntp := netip.MustParseAddrPort("9.9.9.9:53"), netip.MustParseAddrPort("9.9.9.9:123")
	for _, tt := range []struct {
		proto Proto
		addr  netip.AddrPort
		want  Action
	}{{UDP, dns, Offload}, {TCP, dns, Refuse}, {UDP, ntp, Offload}, {TCP, ntp, Offload}} {
		if d := p.Explain("x", Connect, tt.proto, tt.addr); d.Action != tt.want {
			t.Errorf("%s %s: got %s (%s)", tt.proto, tt.addr, d.Action, d.Why)
		}
	}
}

func TestParseErrors(t *testing.T) {
	tests := []struct{ name, in, want string }{
		{"action", "rules:\n  - action: drop", `p:2:13: "drop" is not an action; use offload, kernel or refuse`},
		{"no action", "rules:\n  - process: x", `p:2:5: rule without an action; add action: offload, kernel or refuse`},
		{"proto", "rules:\n  - {proto: sctp, action: kernel}", `p:2:13: "sctp" is not a protocol; use tcp or udp`},
		{"no_dpu", "no_dpu: wait", `p:1:9: "wait" is not a choice here; use kernel or refuse`},
		{"unknown key", "rules:\n  - {action: kernel, lisen: any}", `p:2:22: unknown key "lisen"; did you mean "listen"?`},
		{"listen and connect", "rules:\n  - listen: any\n    connect: any\n    action: kernel", `p:3:14: a rule has listen or connect, not both; write two rules`},
		{"glob", "rules:\n  - process: \"[\"\n    action: kernel", `p:2:14: "[" is not a pattern of process names; use letters, *, ? and […]`},
		{"address", "rules:\n  - connect: example.com:80\n    action: kernel", `p:2:14: "example.com" is neither an address nor "any" in "example.com:80"`},
		{"prefix", "rules:\n  - connect: 10.0.0.1/8\n    action: kernel", `p:2:14: prefix 10.0.0.1/8 has bits set beyond /8 (meant: 10.0.0.0/8?) in "10.0.0.1/8"`},
		{"prefix length", "rules:\n  - connect: 10.0.0.0/33\n    action: kernel", `p:2:14: "10.0.0.0/33" is not a prefix (address/bits) in "10.0.0.0/33"`},
		{"ports", "rules:\n  - listen: any:90-80\n    action: kernel", `p:2:13: "90-80" is not a port or a range low-high from 0 to 65535 in "any:90-80"`},
		{"open bracket", "rules:\n  - listen: \"[::1\"\n    action: kernel", `p:2:13: "[::1" is not a target; write any, 10.0.0.0/8, 10.1.2.3:80, any:8000-8999 or [2001:db8::/32]:443`},
		{"no port after colon", "rules:\n  - listen: \"any:\"\n    action: kernel", `p:2:13: "any:" is not a target; write any, 10.0.0.0/8, 10.1.2.3:80, any:8000-8999 or [2001:db8::/32]:443`},
		{"loopback", "rules:\n  - listen: 127.0.0.1:80\n    action: offload", `p:2:3: the rule on line 2 offloads loopback addresses, which stay in the kernel; set offload_loopback: true`},
		{"too many", "rules:\n" + strings.Repeat("  - action: kernel\n", MaxRules+1), `p:2:3: 121 rules, at most 120 are possible; join prefixes or port ranges`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse("p", []byte(tt.in))
			if err == nil || err.Error() != tt.want {
				t.Errorf("got  %v\nwant %s", err, tt.want)
			}
		})
	}
}

func TestTargetText(t *testing.T) {
	for _, s := range []string{"any", "any:80", "10.0.0.0/8", "10.0.0.0/8:1-2", "10.1.2.3:80", "2001:db8::/32", "[2001:db8::/32]:443", "[2001:db8::1]:0-9"} {
		var a, b Target
		if err := a.UnmarshalText([]byte(s)); err != nil {
			t.Fatal(err)
		}
		if a.String() != s {
			t.Errorf("%s is written as %s", s, a.String())
		}
		if err := b.UnmarshalText([]byte(a.String())); err != nil || a != b {
			t.Errorf("%s: %+v, %+v, %v", s, a, b, err)
		}
	}
}

// The compiled array must decide as the file reads: checked against a direct
// reading of the rules on random sockets.
func TestCompileAgainstFile(t *testing.T) {
	p, err := Parse("p", []byte(sample))
	if err != nil {
		t.Fatal(err)
	}
	naive := func(process string, op Op, a netip.AddrPort) Action {
		if a.Addr().IsLoopback() {
			return Kernel
		}
		for _, r := range p.Rules {
			target := &Target{PortHi: 65535}
			switch {
			case r.Listen != nil && op == Listen:
				target = r.Listen
			case r.Connect != nil && op == Connect:
				target = r.Connect
			case r.Listen != nil || r.Connect != nil:
				continue
			}
			if r.Process.Match(process) && a.Port() >= target.PortLo && a.Port() <= target.PortHi &&
				(!target.Prefix.IsValid() || target.Prefix.Contains(a.Addr())) {
				return r.Action
			}
		}
		return p.Default
	}
	rng := rand.New(rand.NewPCG(1, 2))
	hosts := []string{"0.0.0.0", "10.0.0.9", "127.0.0.1", "198.18.0.1", "::", "::1", "2001:db8::1", "2001:db9::1"}
	ports := []uint16{0, 79, 80, 443, 444, 5432, 65535}
	for range 2000 {
		a := netip.AddrPortFrom(netip.MustParseAddr(hosts[rng.IntN(len(hosts))]), ports[rng.IntN(len(ports))])
		process := []string{"nginx", "redis", "haproxy"}[rng.IntN(3)]
		op := Op(1 + rng.IntN(2))
		if got, want := p.Explain(process, op, TCP, a).Action, naive(process, op, a); got != want {
			t.Fatalf("%s %s %s: got %s, want %s", process, op, a, got, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(sample))
	f.Add([]byte("offload_loopback: true\nrules: [{action: refuse, listen: \"[::]:1\"}]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := Parse("p", data)
		if err != nil {
			return
		}
		if n := len(p.Compile("nginx").Rules); n > MaxRules+3 {
			t.Errorf("%d compiled rules", n)
		}
		p.Explain("nginx", Connect, TCP, netip.MustParseAddrPort("10.0.0.1:80"))
	})
}

func FuzzTarget(f *testing.F) {
	for _, s := range []string{"any:80", "[::1]:1-2", "10.0.0.0/8", "::ffff:1.2.3.4"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var a, b Target
		if a.UnmarshalText([]byte(s)) != nil {
			return
		}
		if err := b.UnmarshalText([]byte(a.String())); err != nil || a != b {
			t.Errorf("%q: %+v became %+v, %v", s, a, b, err)
		}
	})
}

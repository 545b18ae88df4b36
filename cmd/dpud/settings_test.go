// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"pno/internal/config"
)

// minimal is what a file must hold.
const minimal = "link: {interface: p0}\naddresses: [198.18.0.2/24]\n"

// The sample must load, and show the defaults.
func TestSample(t *testing.T) {
	var got settings
	if err := config.Load("../../deploy/dpud.yaml", &got); err != nil {
		t.Fatal(err)
	}
	want := defaultSettings()
	if err := config.Parse("minimal", []byte(minimal), &want); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("deploy/dpud.yaml\nsays     %+v\ndefaults %+v", got, want)
	}
}

func TestSettingsErrors(t *testing.T) {
	tests := []struct{ name, in, want string }{
		{"empty", "",
			"c: link: no interface: name the port on the wire's side, as in link: {interface: p0}\n" +
				"c: addresses: no addresses: give those that the DPU has on the wire, as in addresses: [198.18.0.2/24]"},
		{"no interface", "link: {queues: 1}\naddresses: [198.18.0.2/24]\n",
			"c:1:7: no interface: name the port on the wire's side, as in link: {interface: p0}"},
		{"unknown key", minimal + "shrads: 2\n", `c:3:1: unknown key "shrads"; did you mean "shards"?`},
		{"driver", "link:\n  interface: p0\n  driver: dpdk\naddresses: [198.18.0.2/24]\n",
			`c:3:11: "dpdk" is not a driver; use af_xdp, af_packet or asavie`},
		{"mode", "link:\n  interface: p0\n  mode: fast\naddresses: [198.18.0.2/24]\n",
			`c:3:9: "fast" is not a mode; use auto, copy or zerocopy`},
		{"zero-copy of another driver", "link:\n  interface: p0\n  driver: af_packet\n  mode: zerocopy\naddresses: [198.18.0.2/24]\n",
			"c:4:9: zerocopy needs driver af_xdp and generic off"},
		{"XDP settings of another driver", "link:\n  interface: p0\n  driver: af_packet\n  replace: true\naddresses: [198.18.0.2/24]\n",
			"c:3:11: generic and replace are settings of driver af_xdp"},
		{"interface name", "link: {interface: a/b}\naddresses: [198.18.0.2/24]\n", `c:1:19: "a/b" is not the name of an interface`},
		{"queues", "link: {interface: p0, queues: 17}\naddresses: [198.18.0.2/24]\n", "c:1:31: 17 queues, want 0 to 16"},
		{"address without length", "link: {interface: p0}\naddresses: [198.18.0.2]\n",
			`c:2:13: netip.ParsePrefix("198.18.0.2"): no '/'`},
		{"address twice", "link: {interface: p0}\naddresses: [198.18.0.2/24, 198.18.0.2/16]\n", "c:2:12: 198.18.0.2 is given twice"},
		{"loopback address", "link: {interface: p0}\naddresses: [127.0.0.1/8]\n", "c:2:12: 127.0.0.1/8 cannot be an own address"},
		{"gateway elsewhere", minimal + "gateway: 10.0.0.1\n", "c:3:10: 10.0.0.1 is on none of the networks of addresses"},
		{"gateway is oneself", minimal + "gateway: 198.18.0.2\n", "c:3:10: 198.18.0.2 is on none of the networks of addresses"},
		{"route without gateway", minimal + "routes:\n  - {to: 10.0.0.0/8}\n", "c:4:3: a route needs both to and via"},
		{"route of two families", minimal + "routes:\n  - {to: ::/0, via: 198.18.0.1}\n",
			"c:4:3: ::/0 and its gateway 198.18.0.1 are of different families"},
		{"shards", minimal + "shards: 99\n", "c:3:9: 99 shards, want 0 to 16"},
		{"a core twice", minimal + "cores: [1, 1]\n", "c:3:8: core 1 is given twice; each shard needs one of its own"},
		{"too few cores", minimal + "shards: 2\ncores: [1]\n", "c:4:8: 1 cores for 2 shards; give one for each, or leave shards out"},
		{"spin", minimal + "spin: 2s\n", "c:3:7: 2s, want 1ns to 1s"},
		{"relative socket", minimal + "control: dpud.sock\n", `c:3:10: "dpud.sock" is not a full path of a Unix socket; it has at most 107 bytes`},
		{"one socket for two", minimal + "control: /run/a\nadmin: /run/a\n", "c:4:8: /run/a is the control socket too; each needs a path of its own"},
		{"metrics", minimal + "metrics: \"9464\"\n", `c:3:10: "9464" is not an address with a port, as 127.0.0.1:9464, nor none`},
		{"metrics port", minimal + "metrics: localhost:http\n", `c:3:10: "localhost:http" is not an address with a port, as 127.0.0.1:9464, nor none`},
		{"log", minimal + "log: {level: loud}\n", `c:3:14: "loud" is not a level; use debug, info, warn or error`},
		{"congestion", minimal + "tcp: {congestion: bbr}\n", `c:3:19: "bbr" is not a congestion control; use cubic or reno`},
		{"buffer", minimal + "tcp: {send_buffer: 1KiB}\n", "c:3:20: 1KiB, want 4KiB to 64MiB"},
		{"buffer above its maximum", minimal + "tcp: {recv_buffer: 16MiB}\n", "c:3:20: 16MiB is more than its maximum, 4MiB"},
		{"moderation", minimal + "moderation:\n  max_delay: 1s\n  max_events: 0\n", "c:4:14: 1s, want 1ns to 10ms\nc:5:15: 0 events, want 1 to 65536"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			set := defaultSettings()
			err := config.Parse("c", []byte(tt.in), &set)
			if err == nil || err.Error() != tt.want {
				t.Errorf("got  %v\nwant %s", err, tt.want)
			}
		})
	}
}

func TestRoutes(t *testing.T) {
	set := defaultSettings()
	in := "link: {interface: p0}\naddresses: [198.18.0.2/24, 2001:db8::2/64]\ngateway: 198.18.0.1\nroutes: [{to: 2001:db8:1::5/48, via: 2001:db8::1}]\n"
	if err := config.Parse("c", []byte(in), &set); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range set.routes() {
		got = append(got, r.To.String()+" via "+r.Gateway.String())
	}
	want := "2001:db8:1::/48 via 2001:db8::1, 0.0.0.0/0 via 198.18.0.1"
	if s := strings.Join(got, ", "); s != want {
		t.Errorf("got  %s\nwant %s", s, want)
	}
	set.Gateway = netip.MustParseAddr("2001:db8::1")
	if r := set.routes()[1]; r.To.String() != "::/0" {
		t.Errorf("default route of IPv6: %v", r.To)
	}
}

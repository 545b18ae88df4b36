// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"pno/internal/admin/admintest"
	adminv1 "pno/proto/pno/admin/v1"
)

func TestFilterSockets(t *testing.T) {
	tests := []struct {
		name, filter string
		want         []string
	}{
		{"text", `state = "LISTEN"`, []string{"sessions/9/sockets/1-80000002", "sessions/7/sockets/0-80000001"}},
		{"text without quotation and case", `state=listen`, []string{"sessions/9/sockets/1-80000002", "sessions/7/sockets/0-80000001"}},
		{"star at the end", `state = "FIN*"`, []string{"sessions/7/sockets/1-00000005"}},
		{"star at both ends", `state = "*yn-s*"`, []string{"sessions/9/sockets/0-80000403"}},
		{"star at the start", `process = "*proxy" AND shard = 0`, []string{"sessions/9/sockets/0-80000403"}},
		{"kind", `kind = orphan`, []string{"sessions/7/sockets/1-00000005"}},
		{"not", `kind != connection AND process = nginx`, []string{"sessions/7/sockets/0-80000001", "sessions/7/sockets/1-00000005"}},
		{"number", `pid = 815 AND shard < 1`, []string{"sessions/9/sockets/0-80000403"}},
		{"hexadecimal number", `handle = 0x80000403`, []string{"sessions/9/sockets/0-80000403"}},
		{"at least", `tx_queued_bytes >= 1448`, []string{"sessions/7/sockets/0-00000003", "sessions/7/sockets/1-00000005"}},
		{"more", `tx_queued_bytes > 1448`, []string{"sessions/7/sockets/0-00000003"}},
		{"bool", `shared = true`, []string{"sessions/7/sockets/0-80000001"}},
		{"nested", `listener.backlog > 511`, []string{"sessions/9/sockets/1-80000002"}},
		{"port", `local = ":443"`, []string{"sessions/9/sockets/1-80000002"}},
		{"address", `peer = 198.18.0.100`, []string{"sessions/7/sockets/0-00000002"}},
		{"prefix", `peer = 198.18.0.200/29`, []string{"sessions/9/sockets/0-80000403"}},
		{"prefix and port", `peer = "198.18.0.0/15:8080"`, []string{"sessions/9/sockets/0-80000403"}},
		{"IPv6 address", `local = 2001:db8::2`, []string{"sessions/9/sockets/1-80000002"}},
		{"IPv6 address and port", `local = "[2001:db8::2]:443"`, []string{"sessions/9/sockets/1-80000002"}},
		{"IPv6 prefix", `local = 2001:db8::/32`, []string{"sessions/9/sockets/1-80000002"}},
		{"nothing matches", `pid = 1`, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			kept, err := keep(dpuBackend{admintest.DPU{}}.sockets(), tt.filter)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, s := range kept {
				got = append(got, s.GetName())
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("got  %v\nwant %v", got, tt.want)
			}
		})
	}
}

func TestFilterTimes(t *testing.T) {
	for filter, want := range map[string]int{
		`attach_time > "2026-03-01T09:00:00Z"`:  1,
		`attach_time <= "2026-03-01T09:00:00Z"`: 1,
		`attach_time > "2027-01-01T00:00:00Z"`:  0,
	} {
		kept, err := keep(dpuBackend{admintest.DPU{}}.sessions(), filter)
		if err != nil || len(kept) != want {
			t.Errorf("%s: %d sessions, want %d (%v)", filter, len(kept), want, err)
		}
	}
	kept, err := keep(dpuBackend{admintest.DPU{}}.shards(), `parked_time >= 1m1s`)
	if err != nil || len(kept) != 2 {
		t.Errorf("%d shards, want 2 (%v)", len(kept), err)
	}
}

func TestFilterErrors(t *testing.T) {
	tests := []struct {
		name, filter, want string
	}{
		{"field only", `pid`, "filter: incomplete at its end: want field, comparison and value"},
		{"ends with AND", `pid = 1 AND`, "filter: incomplete at its end: want field, comparison and value"},
		{"no AND", `pid = 1 shard = 2`, `filter: found "shard" where AND was expected`},
		{"OR", `pid = 1 OR shard = 2`, `filter: found "OR" where AND was expected`},
		{"unknown field", `port = 1`, `filter: no field "port"; there are name, session, shard, handle, pid`},
		{"unknown comparison", `pid ~ 1`, `filter: unknown comparison "~"; there are = != < <= > >=`},
		{"number", `pid = many`, `filter: pid: want a whole number, not "many"`},
		{"bool", `shared = maybe`, `filter: shared: want true or false, not "maybe"`},
		{"kind", `kind = thing`, `filter: kind: no value "thing"; there are unspecified, bound, listener, connecting, connection, orphan`},
		{"order of text", `state < LISTEN`, "filter: state can only be compared by = and !=, not by <"},
		{"message", `listener = 1`, "filter: listener: has fields within it (unaccepted, waiting, backlog, subscribers); name one of them"},
		{"field of a number", `pid.x = 1`, "filter: pid has no field within it"},
		{"quotation", `state = "LISTEN`, `filter: quotation mark without its end: "LISTEN`},
		{"address", `local = "host:80"`, `filter: local: want an address, a prefix, ADDRESS:PORT, [ADDRESS]:PORT or :PORT, not "host:80"`},
		{"port", `local = ":99999"`, `filter: local: want an address, a prefix, ADDRESS:PORT, [ADDRESS]:PORT or :PORT, not ":99999"`},
		{"prefix", `peer = 10.0.0.0/99`, `filter: peer: want an address`},
		{"long", strings.Repeat("x", maxFilter+1), "filter: 4097 bytes, at most 4096"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := keep([]*adminv1.Socket{}, tt.filter)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got  %v\nwant %s", err, tt.want)
			}
		})
	}
}

// FuzzFilter: a filter comes from a client; no text may do more than fail.
func FuzzFilter(f *testing.F) {
	for _, s := range []string{`pid = 1 AND local = ":80"`, `listener.backlog>=1`, `state="a\"b*"`, `peer = [::1]:1`, `kind!=orphan`, `=`, `"`, `a.b.c = `} {
		f.Add(s)
	}
	sockets := dpuBackend{admintest.DPU{}}.sockets()
	f.Fuzz(func(t *testing.T, text string) {
		p, err := parseFilter(text, (*adminv1.Socket)(nil).ProtoReflect().Descriptor())
		if err != nil {
			return
		}
		for _, s := range sockets {
			before := proto.Clone(s)
			p.match(s)
			if !proto.Equal(before, s) {
				t.Fatalf("filter %q changed a socket", text)
			}
		}
	})
}

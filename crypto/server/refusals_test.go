// SPDX-License-Identifier: Apache-2.0

package server

import (
	"fmt"
	"net"
	"testing"
	"time"

	"pno/crypto/audit"
	"pno/crypto/signing"
)

func TestRefusals(t *testing.T) {
	r := newRefusals(10*time.Second, 3, 100)
	now := time.Unix(1000, 0)
	r.sum(now, false)
	alone := 0
	for range 50 {
		if r.note("a", signing.Denied) {
			alone++
		}
	}
	if alone != 3 || !r.note("a", signing.BadInput) || !r.note("b", signing.Denied) {
		t.Errorf("%d recorded one by one", alone)
	}
	if got := r.sum(now.Add(5*time.Second), false); got != nil {
		t.Errorf("in the interval: %v", got)
	}
	got := r.sum(now.Add(10*time.Second), false)
	if len(got) != 1 || got[0].Client != "a" || got[0].Status != signing.Denied || got[0].More != 46 {
		t.Errorf("%+v", got)
	}
	// As long as it goes on there are no more records one by one.
	if r.note("a", signing.Denied) {
		t.Error("a is told again at once")
	}
	if got := r.sum(now.Add(20*time.Second), false); len(got) != 1 || got[0].More != 0 {
		t.Errorf("%+v", got)
	}
	// Quiet for an interval: it is forgotten.
	if got := r.sum(now.Add(30*time.Second), false); len(got) != 0 {
		t.Errorf("%+v", got)
	}
	if !r.note("a", signing.Denied) {
		t.Error("a is not told after a quiet interval")
	}
}

// However many there are, memory and records are bounded and none is left out.
func TestRefusalsBounded(t *testing.T) {
	const n = 50_000
	r := newRefusals(time.Second, 16, 256)
	alone := 0
	for i := range n {
		if r.note(fmt.Sprint(i), signing.Denied) {
			alone++
		}
	}
	if alone != 256 || len(r.seen) > maxOrigins+1 {
		t.Errorf("%d records, %d origins", alone, len(r.seen))
	}
	all := uint64(alone)
	var got []audit.Record
	got = r.sum(time.Now(), true)
	for _, rec := range got {
		all += 1 + rec.More
	}
	if all != n || len(got) > maxOrigins+1 {
		t.Errorf("%d of %d told, in %d records", all, n, len(got))
	}
}

func TestAddressOf(t *testing.T) {
	for in, want := range map[string]string{"192.0.2.1:77": "192.0.2.1", "[::ffff:192.0.2.1]:77": "192.0.2.1",
		"[2001:db8:1:2:3::4]:77": "2001:db8:1:2::/64", "[fe80::1%lo]:77": "fe80::/64"} {
		a, err := net.ResolveTCPAddr("tcp", in)
		if err != nil {
			t.Fatal(err)
		}
		if got := addressOf(a); got != want {
			t.Errorf("%s: %s", in, got)
		}
	}
}

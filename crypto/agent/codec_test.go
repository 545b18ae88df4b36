// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"errors"
	"testing"

	"pno/crypto/signing"
)

func sampleRequest(n int) *signing.Request {
	return &signing.Request{Key: signing.KeyID{1, 2}, Scheme: signing.RSAPSSSHA256, Input: signing.Digest, Data: bytes.Repeat([]byte{7}, n)}
}

func TestPacketRoundTrip(t *testing.T) {
	p := AppendHello(nil, 42, "nginx")
	p = AppendWelcome(p, 3, 64, 1000)
	p = AppendRefused(p, 4, 13, "no")
	p = AppendOp(p, 5, sampleRequest(33), 99)
	p = AppendResult(p, 6, signing.OK, 77, []byte("sig"))
	var got []any
	for len(p) > 0 {
		m, rest, err := Next(p)
		if err != nil {
			t.Fatal(err)
		}
		got, p = append(got, m), rest
	}
	if len(got) != 5 {
		t.Fatalf("%d messages", len(got))
	}
	if h := got[0].(*Hello); h.PID != 42 || text(h.Name[:]) != "nginx" {
		t.Errorf("hello %+v", h)
	}
	if w := got[1].(*Welcome); w.ID != 3 || w.MaxInflight != 64 || w.MaxTimeoutMicros != 1000 {
		t.Errorf("welcome %+v", w)
	}
	if r := got[2].(*Refused); r.Err != 13 || text(r.Text[:]) != "no" {
		t.Errorf("refused %+v", r)
	}
	if o := got[3].(*Op); o.ID != 5 || o.Key != [32]byte{1, 2} || o.TimeoutMicros != 99 || o.Scheme != 0x0804 || len(o.Data) != 33 || o.Data[32] != 7 {
		t.Errorf("op %+v", o)
	}
	if r := got[4].(*Result); r.ID != 6 || r.Status != 1 || r.Micros != 77 || string(r.Data) != "sig" {
		t.Errorf("result %+v", r)
	}
}

func TestMalformedMessages(t *testing.T) {
	op := AppendOp(nil, 1, sampleRequest(33), 0)
	with := func(at int, b byte) []byte {
		p := bytes.Clone(op)
		p[at] = b
		return p
	}
	for name, p := range map[string][]byte{
		"empty":            {},
		"short":            op[:23],
		"magic":            with(0, 0),
		"version":          with(4, 9),
		"unknown type":     with(6, 99),
		"size beyond":      with(8, 255),
		"size not of 8":    with(8, op[8]+1),
		"cut":              op[:len(op)-8],
		"reserved":         with(12, 1),
		"reserved in op":   with(68, 1),
		"no data":          with(64, 0),
		"length too large": with(66, 1),
		"length too small": with(64, 3),
		"dirty padding":    with(len(op)-1, 1),
		"hello flags":      func() []byte { p := AppendHello(nil, 1, ""); p[28] = 1; return p }(),
		"hello size":       func() []byte { p := AppendHello(nil, 1, ""); p[8] = 88; return p }(),
	} {
		if _, _, err := Next(p); !errors.Is(err, ErrMessage) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzNext(f *testing.F) {
	f.Add(AppendHello(nil, 1, "x"))
	f.Add(AppendOp(AppendWelcome(nil, 1, 2, 3), 4, sampleRequest(5), 6))
	f.Add(AppendResult(AppendRefused(nil, 1, 2, "x"), 1, signing.OK, 1, []byte{1}))
	f.Fuzz(func(t *testing.T, packet []byte) {
		for len(packet) > 0 {
			m, rest, err := Next(packet)
			if err != nil {
				return
			}
			if len(rest) >= len(packet) {
				t.Fatal("no progress")
			}
			if o, ok := m.(*Op); ok {
				r := &signing.Request{Key: o.Key, Scheme: signing.Scheme(o.Scheme), Input: signing.Input(o.Input), Data: o.Data}
				if again := AppendOp(nil, o.ID, r, o.TimeoutMicros); !bytes.Equal(again, packet[:len(packet)-len(rest)]) {
					t.Fatalf("% x\nencodes again as\n% x", packet, again)
				}
			}
			packet = rest
		}
	})
}

// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"bytes"
	"encoding/binary"
	"testing"
	"time"

	"pno/crypto/signing"
)

// blocks are decrypted PKCS #1 blocks, right and wrong in every way that a
// client could tell apart if the answer, or its time, did.
func blocks() map[string][]byte {
	right := append([]byte{0, 2}, bytes.Repeat([]byte{7}, 256-3-signing.PremasterLen)...)
	right = append(append(right, 0), append([]byte{3, 3}, bytes.Repeat([]byte{9}, signing.PremasterLen-2)...)...)
	with := func(at int, b byte) []byte {
		c := bytes.Clone(right)
		c[at] = b
		return c
	}
	return map[string][]byte{
		"right": right, "first byte": with(0, 1), "type": with(1, 1), "a zero early": with(2, 0), "a zero late": with(len(right)-50, 0),
		"no zero": with(len(right)-1-signing.PremasterLen, 1), "version": with(len(right)-signing.PremasterLen, 4), "nothing": make([]byte, 256),
	}
}

func TestUnpad(t *testing.T) {
	instead := NewRejecter([]byte("key")).Instead([]byte("ciphertext"))
	if again := NewRejecter([]byte("key")).Instead([]byte("ciphertext")); !bytes.Equal(again, instead) || len(instead) != signing.PremasterLen {
		t.Error("one ciphertext has two answers")
	}
	for _, other := range [][]byte{NewRejecter([]byte("key")).Instead([]byte("another")), NewRejecter([]byte("other")).Instead([]byte("ciphertext"))} {
		if bytes.Equal(other, instead) {
			t.Error("the answer does not depend on key and ciphertext")
		}
	}
	for name, block := range blocks() {
		want := instead
		if name == "right" {
			want = block[len(block)-signing.PremasterLen:]
		}
		if got := Unpad(block, instead, 0x0303); !bytes.Equal(got, want) {
			t.Errorf("%s: got %x", name, got)
		}
	}
}

// The time does not tell them apart. The least of many short measurements is
// what counts: whatever else runs on the machine only adds to it.
func TestUnpadTime(t *testing.T) {
	const rounds, calls, tolerance = 400, 64, 1.15
	instead := NewRejecter([]byte("key")).Instead([]byte("ciphertext"))
	all := blocks()
	measure := func() (fastest, slowest string, ratio float64) {
		least := map[string]time.Duration{}
		for range rounds {
			for name, block := range all {
				start := time.Now()
				for range calls {
					Unpad(block, instead, 0x0303)
				}
				if took := time.Since(start); least[name] == 0 || took < least[name] {
					least[name] = took
				}
			}
		}
		for name, d := range least {
			if fastest == "" || d < least[fastest] {
				fastest = name
			}
			if slowest == "" || d > least[slowest] {
				slowest = name
			}
		}
		return fastest, slowest, float64(least[slowest]) / float64(least[fastest])
	}
	var fastest, slowest string
	var ratio float64
	for range 5 { // a difference that is there is there each time
		if fastest, slowest, ratio = measure(); ratio < tolerance {
			return
		}
	}
	t.Errorf("%q takes %.2f times as long as %q", slowest, ratio, fastest)
}

// Whatever a ciphertext decrypts to: what comes out is the premaster secret of a
// block that is in order, as RFC 8017 has it, or instead.
func FuzzUnpad(f *testing.F) {
	for _, block := range blocks() {
		f.Add(block, uint16(0x0303))
	}
	instead := NewRejecter([]byte("key")).Instead([]byte("ciphertext"))
	f.Fuzz(func(t *testing.T, block []byte, version uint16) {
		if len(block) < 256 {
			return // of the size of the key, which is no smaller
		}
		want := instead
		if zero := bytes.IndexByte(block[2:], 0); block[0] == 0 && block[1] == 2 && zero == len(block)-3-signing.PremasterLen &&
			binary.BigEndian.Uint16(block[zero+3:]) == version {
			want = block[zero+3:]
		}
		if got := Unpad(block, instead, version); !bytes.Equal(got, want) {
			t.Fatalf("got %x, want %x", got, want)
		}
	})
}

// SPDX-License-Identifier: Apache-2.0

package keystore

import (
	"bytes"
	"encoding/hex"
	"testing"
)

// Whatever a KEK's file or variable holds: it is refused, or seals and opens.
func FuzzKEK(f *testing.F) {
	raw := bytes.Repeat([]byte{7}, kekLen)
	f.Add(raw)
	f.Add([]byte(hex.EncodeToString(raw) + "\n"))
	f.Add([]byte(" BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=\n"))
	f.Add(raw[1:])
	f.Fuzz(func(t *testing.T, data []byte) {
		kek, err := parseKEK("f", bytes.Clone(data))
		if err != nil {
			return
		}
		defer kek.Close()
		again, err := parseKEK("f", bytes.Clone(data))
		if err != nil {
			t.Fatal(err)
		}
		defer again.Close()
		wrapped, err := kek.Wrap([]byte("secret"), []byte("aad"))
		if err != nil {
			t.Fatal(err)
		}
		if out, err := again.Unwrap(wrapped, []byte("aad")); err != nil || string(out) != "secret" || kek.ID() != again.ID() {
			t.Fatalf("%q, %v", out, err)
		}
	})
}

// Whatever is said about a token: it is refused, or says all that is needed.
func FuzzTokenSettings(f *testing.F) {
	f.Add("module=/m.so;token=t;object=o;pin-file=/p")
	f.Add("module=;token")
	f.Fuzz(func(t *testing.T, text string) {
		set, err := tokenSettings(text)
		if err != nil {
			return
		}
		for _, name := range tokenKeys {
			if set[name] == "" {
				t.Fatalf("no %s in %q", name, set)
			}
		}
	})
}

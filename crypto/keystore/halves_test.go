// SPDX-License-Identifier: Apache-2.0

package keystore

import (
	"bytes"
	"crypto/ed25519"
	"testing"

	"pno/crypto/engine/enginetest"
)

func TestMatches(t *testing.T) {
	kinds := []string{"RSA-2048", "RSA-3072", "P-256", "P-384", "P-521"}
	for _, kind := range kinds {
		k := enginetest.Key(t, kind)
		for _, other := range kinds {
			o := enginetest.Key(t, other)
			if got := matches(k.PKCS8, o.Public); got != (kind == other) {
				t.Errorf("%s of %s: %v", kind, other, got)
			}
		}
		for n := range len(k.PKCS8) - 1 {
			if cut := k.PKCS8[:n]; matches(cut, k.Public) {
				t.Errorf("%s: %d bytes of it match", kind, n)
			}
		}
	}
	if k := enginetest.Key(t, "Ed25519"); !matches(k.PKCS8, k.Public) || matches([]byte("x"), k.Public) {
		t.Error("Ed25519")
	}
}

// No bytes make it panic, or read beyond them.
func FuzzMatches(f *testing.F) {
	for _, kind := range []string{"RSA-2048", "P-256", "Ed25519"} {
		f.Add(enginetest.Key(f, kind).PKCS8)
	}
	rsa, ec := enginetest.Key(f, "RSA-2048"), enginetest.Key(f, "P-256")
	f.Fuzz(func(t *testing.T, der []byte) {
		whole := bytes.Clone(der)
		matches(der, rsa.Public)
		matches(der, ec.Public)
		matches(der, ed25519.PublicKey{})
		if !bytes.Equal(der, whole) {
			t.Error("it was changed")
		}
	})
}

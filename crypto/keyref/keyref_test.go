// SPDX-License-Identifier: Apache-2.0

package keyref

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"testing"
)

func sample(t testing.TB) Ref {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return Ref{SPKI: spki, TLS13Only: true}
}

func TestRoundTrip(t *testing.T) {
	r := sample(t)
	file := append([]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), r.PEM()...)
	got, err := ParsePEM(file)
	if err != nil || !bytes.Equal(got.SPKI, r.SPKI) || !got.TLS13Only {
		t.Fatalf("%v, %+v", err, got)
	}
}

func TestBadReferences(t *testing.T) {
	block, _ := pem.Decode(sample(t).PEM())
	with := func(at int, b byte) []byte {
		p := bytes.Clone(block.Bytes)
		p[at] ^= b
		return p
	}
	for name, p := range map[string][]byte{
		"empty": nil, "head only": block.Bytes[:headSize], "magic": with(0, 1), "version": with(4, 2), "flags": with(6, 8),
		"key id": with(8, 1), "length": with(40, 1), "public key": with(headSize+20, 1), "huge": make([]byte, 4096),
	} {
		if _, err := Parse(p); !errors.Is(err, ErrRef) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := ParsePEM([]byte("x")); !errors.Is(err, ErrRef) {
		t.Error(err)
	}
}

func FuzzParse(f *testing.F) {
	block, _ := pem.Decode(sample(f).PEM())
	f.Add(block.Bytes)
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := Parse(data)
		if err != nil {
			return
		}
		if b, _ := pem.Decode(r.PEM()); !bytes.Equal(b.Bytes, data) {
			t.Fatal("encodes again as something else")
		}
	})
}

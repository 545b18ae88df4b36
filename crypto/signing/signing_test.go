// SPDX-License-Identifier: Apache-2.0

package signing

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"testing"
)

func publics(t *testing.T) (rsaKey, p256, p384, ed crypto.PublicKey) {
	r, err1 := rsa.GenerateKey(rand.Reader, 2048)
	e, err2 := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	e3, err3 := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	pub, _, err4 := ed25519.GenerateKey(rand.Reader)
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		t.Fatal(err)
	}
	return r.Public(), e.Public(), e3.Public(), pub
}

func TestPrepare(t *testing.T) {
	rsaKey, p256, p384, ed := publics(t)
	b := func(n int) []byte { return make([]byte, n) }
	tests := []struct {
		name   string
		pub    crypto.PublicKey
		scheme Scheme
		input  Input
		data   []byte
		only13 bool
		want   Status
	}{
		{"PKCS #1", rsaKey, RSAPKCS1SHA256, Digest, b(32), false, OK},
		{"PSS 512", rsaKey, RSAPSSSHA512, Digest, b(64), false, OK},
		{"digest too short", rsaKey, RSAPSSSHA256, Digest, b(31), false, BadInput},
		{"digest of another hash", rsaKey, RSAPSSSHA256, Digest, b(48), false, BadInput},
		{"a whole padded block", rsaKey, RSAPKCS1SHA256, Digest, b(256), false, BadInput},
		{"RSA with ECDSA", rsaKey, ECDSAP256SHA256, Digest, b(32), false, BadScheme},
		{"ECDSA with RSA", p256, RSAPSSSHA256, Digest, b(32), false, BadScheme},
		{"unknown scheme", rsaKey, 0x0201, Digest, b(20), false, BadScheme},
		{"scheme none", rsaKey, 0, Digest, b(32), false, BadScheme},
		{"P-256 with SHA-384, TLS 1.2", p256, ECDSAP384SHA384, Digest, b(48), false, OK},
		{"P-256 with SHA-384, TLS 1.3", p256, ECDSAP384SHA384, TLS13Server, b(48), false, BadScheme},
		{"P-384, TLS 1.3", p384, ECDSAP384SHA384, TLS13Server, b(32), false, OK},
		{"Ed25519 message", ed, Ed25519, Message, b(130), false, OK},
		{"Ed25519 digest", ed, Ed25519, Digest, b(64), false, BadInput},
		{"a message for RSA", rsaKey, RSAPSSSHA256, Message, b(32), false, BadInput},
		{"PKCS #1 in TLS 1.3", rsaKey, RSAPKCS1SHA256, TLS13Server, b(32), false, BadScheme},
		{"transcript length", rsaKey, RSAPSSSHA256, TLS13Client, b(33), false, BadInput},
		{"TLS 1.3 only, transcript", rsaKey, RSAPSSSHA256, TLS13Server, b(48), true, OK},
		{"TLS 1.3 only, digest", rsaKey, RSAPSSSHA256, Digest, b(32), true, Denied},
		{"TLS 1.3 only, message", ed, Ed25519, Message, b(130), true, Denied},
		{"TLS 1.3 only, premaster", rsaKey, 0x0303, TLS12Premaster, b(256), true, Denied},
		{"premaster", rsaKey, 0x0303, TLS12Premaster, b(256), false, OK},
		{"premaster length", rsaKey, 0x0303, TLS12Premaster, b(255), false, BadInput},
		{"premaster with ECDSA", p256, 0x0303, TLS12Premaster, b(256), false, BadScheme},
		{"no data", rsaKey, RSAPSSSHA256, Digest, nil, false, BadInput},
		{"oversize", ed, Ed25519, Message, b(MaxInput + 1), false, BadInput},
		{"unknown input", rsaKey, RSAPSSSHA256, 9, b(32), false, BadInput},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Prepare(&Request{Scheme: tt.scheme, Input: tt.input, Data: tt.data}, tt.pub, tt.only13)
			if StatusOf(err) != tt.want {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

func TestContent13(t *testing.T) {
	for _, in := range []Input{TLS13Server, TLS13Client} {
		hash := bytes.Repeat([]byte{9}, 48)
		content := Content13(in, hash)
		if len(content) != 64+34+48 {
			t.Errorf("%d bytes", len(content))
		}
		got, transcript, ok := Split13(content)
		if !ok || got != in || !bytes.Equal(transcript, hash) {
			t.Errorf("%v: got %v, %x, %v", in, got, transcript, ok)
		}
	}
	for name, c := range map[string][]byte{
		"empty": nil, "another context": Content13(TLS13Server, nil), "no spaces": []byte(serverContext), "length": Content13(TLS13Server, make([]byte, 31)),
	} {
		if _, _, ok := Split13(c); ok {
			t.Errorf("%s: taken", name)
		}
	}
}

func TestSchemeText(t *testing.T) {
	for _, s := range Schemes() {
		b, _ := s.MarshalText()
		var got Scheme
		if err := got.UnmarshalText(b); err != nil || got != s {
			t.Errorf("%s: %v, %v", b, got, err)
		}
	}
	if err := new(Scheme).UnmarshalText([]byte("rsa")); err == nil {
		t.Error("rsa is taken for a scheme")
	}
}

func FuzzPrepare(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(uint16(0x0804), uint8(1), make([]byte, 32), false)
	f.Add(uint16(0x0403), uint8(3), make([]byte, 48), true)
	f.Fuzz(func(t *testing.T, scheme uint16, input uint8, data []byte, only13 bool) {
		for _, pub := range []crypto.PublicKey{key.Public(), rsaKey.Public()} {
			task, err := Prepare(&Request{Scheme: Scheme(scheme), Input: Input(input), Data: data}, pub, only13)
			if err != nil {
				continue
			}
			if task.Decrypt == only13 && only13 {
				t.Fatal("a TLS 1.3 key decrypts")
			}
			if !task.Decrypt && len(task.Data) != task.Scheme.Hash().Size() {
				t.Fatalf("a digest of %d bytes reaches the engine for %v", len(task.Data), task.Scheme)
			}
		}
	})
}

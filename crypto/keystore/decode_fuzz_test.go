// SPDX-License-Identifier: Apache-2.0

package keystore

import (
	"bytes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/pbkdf2"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"strconv"
	"strings"
	"testing"

	"pno/crypto/engine/enginetest"
)

const fuzzPass = "correct horse"

// encrypt is the other half of decryptPKCS8, for a plain text whose padding is
// there already.
func encrypt(t testing.TB, padded []byte, prf, mode string) []byte {
	t.Helper()
	oid := func(text string) asn1.ObjectIdentifier {
		var id asn1.ObjectIdentifier
		for part := range strings.SplitSeq(text, ".") {
			n, err := strconv.Atoi(part)
			if err != nil {
				t.Fatal(err)
			}
			id = append(id, n)
		}
		return id
	}
	der := func(v any) []byte {
		out, err := asn1.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	salt := []byte("eight by")
	key, err := pbkdf2.Key(prfs[prf], fuzzPass, salt, 10, blockModes[mode].keyLen)
	if err != nil {
		t.Fatal(err)
	}
	block, err := blockModes[mode].block(key)
	if err != nil {
		t.Fatal(err)
	}
	iv := make([]byte, block.BlockSize())
	data := make([]byte, len(padded))
	cipher.NewCBCEncrypter(block, iv).CryptBlocks(data, padded)
	var kdf []byte
	if prf == "" { // left out, SHA-1 is meant
		kdf = der(struct {
			Salt       []byte
			Iterations int
		}{salt, 10})
	} else {
		kdf = der(struct {
			Salt       []byte
			Iterations int
			PRF        pkix.AlgorithmIdentifier
		}{salt, 10, pkix.AlgorithmIdentifier{Algorithm: oid(prf)}})
	}
	params := der(pbes2Params{
		KDF:        pkix.AlgorithmIdentifier{Algorithm: oidPBKDF2, Parameters: asn1.RawValue{FullBytes: kdf}},
		Encryption: pkix.AlgorithmIdentifier{Algorithm: oid(mode), Parameters: asn1.RawValue{FullBytes: der(iv)}},
	})
	return der(encryptedKey{Algorithm: pkix.AlgorithmIdentifier{Algorithm: oidPBES2, Parameters: asn1.RawValue{FullBytes: params}}, Data: data})
}

func padTo(plain []byte, size int) []byte {
	n := size - len(plain)%size
	return append(bytes.Clone(plain), bytes.Repeat([]byte{byte(n)}, n)...)
}

// goodFiles are files of a key in every form that is read, by name.
func goodFiles(t testing.TB) map[string][]byte {
	t.Helper()
	ec, ed, rs := enginetest.Key(t, "P-256"), enginetest.Key(t, "Ed25519"), enginetest.Key(t, "RSA-2048")
	inPEM := func(kind string, der []byte) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	}
	sec1, err := x509.MarshalECPrivateKey(ec.Signer.(*ecdsa.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][]byte{
		"PKCS #8 DER": ec.PKCS8,
		"PKCS #8 PEM": inPEM("PRIVATE KEY", ed.PKCS8),
		"PKCS #1":     inPEM("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rs.Signer.(*rsa.PrivateKey))),
		"SEC 1":       append(inPEM("EC PARAMETERS", []byte{6, 0}), inPEM("EC PRIVATE KEY", sec1)...),
	}
	for mode := range blockModes {
		b, err := blockModes[mode].block(make([]byte, blockModes[mode].keyLen))
		if err != nil {
			t.Fatal(err)
		}
		out["encrypted with "+mode] = encrypt(t, padTo(ec.PKCS8, b.BlockSize()), "1.2.840.113549.2.9", mode)
	}
	for prf := range prfs {
		out["derived by "+prf] = inPEM("ENCRYPTED PRIVATE KEY", encrypt(t, padTo(ed.PKCS8, 16), prf, "2.16.840.1.101.3.4.1.42"))
	}
	return out
}

const aes256 = "2.16.840.1.101.3.4.1.42"

// badFiles are encrypted as they should be, and hold what they should not.
func badFiles(t testing.TB) map[string][]byte {
	t.Helper()
	plain := padTo(enginetest.Key(t, "P-256").PKCS8, 16)
	end := func(b ...byte) []byte {
		return append(bytes.Clone(plain[:len(plain)-len(b)]), b...)
	}
	return map[string][]byte{
		"no padding":        encrypt(t, end(0), "", aes256),
		"padding too long":  encrypt(t, end(17), "", aes256),
		"uneven padding":    encrypt(t, end(2, 9, 3), "", aes256),
		"padding only":      encrypt(t, bytes.Repeat([]byte{16}, 16), "", aes256),
		"no sequence":       encrypt(t, append([]byte{0x31}, plain[1:]...), "", aes256),
		"no key":            encrypt(t, padTo([]byte{0x30, 0}, 16), "", aes256),
		"nothing in PEM":    pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte{0x30, 0}}),
		"damaged PKCS #1":   pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: []byte{0x30, 0}}),
		"damaged SEC 1":     pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: []byte{0x30, 0}}),
		"encrypted as once": pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Headers: map[string]string{"DEK-Info": "x"}}),
	}
}

// Every form is read with its passphrase, and those that are encrypted with no other.
func TestForms(t *testing.T) {
	for name, data := range goodFiles(t) {
		key, err := Decode(data, []byte(fuzzPass))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		key.Close()
		if !strings.HasPrefix(name, "encrypted") && !strings.HasPrefix(name, "derived") {
			continue
		}
		for _, pass := range [][]byte{nil, {}, []byte("battery staple")} {
			if key, err := Decode(data, pass); err == nil {
				key.Close()
				t.Errorf("%s: read with passphrase %q", name, pass)
			}
		}
		if _, err := Decode(data, nil); !errors.Is(err, ErrPassphrase) {
			t.Errorf("%s without a passphrase: %v", name, err)
		}
	}
	for name, data := range badFiles(t) {
		if key, err := Decode(data, []byte(fuzzPass)); err == nil {
			key.Close()
			t.Errorf("%s: read", name)
		}
	}
}

func FuzzDecode(f *testing.F) {
	former := maxIterations
	maxIterations = 100
	f.Cleanup(func() { maxIterations = former })
	for _, data := range goodFiles(f) {
		f.Add(data, []byte(fuzzPass))
		f.Add(data, []byte("battery staple"))
	}
	for _, data := range badFiles(f) {
		f.Add(data, []byte(fuzzPass))
	}
	f.Fuzz(func(t *testing.T, data, passphrase []byte) {
		key, err := Decode(data, passphrase)
		if err != nil {
			return
		}
		defer key.Close()
		again, err := Decode(key.Bytes(), nil)
		if err != nil {
			t.Fatalf("what was read is not read again: %v", err)
		}
		defer again.Close()
		if !bytes.Equal(again.Bytes(), key.Bytes()) {
			t.Fatal("what was read is read as another key")
		}
	})
}

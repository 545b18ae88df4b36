// SPDX-License-Identifier: Apache-2.0

package keystore

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"

	"pno/crypto/secmem"
)

// Sizes of RSA keys that are taken: below, no browser accepts the certificate;
// above, one operation blocks a worker for long.
const (
	minRSA = 2048
	maxRSA = 8192
)

// ErrPassphrase is wrapped when an encrypted key came without a passphrase, or
// with the wrong one.
var ErrPassphrase = errors.New("the key is encrypted, and this is not its passphrase")

// Decode reads a private key: PEM of PKCS #8, encrypted PKCS #8, PKCS #1 or SEC 1
// (the first of the file), or DER of PKCS #8. The passphrase may be nil. The
// caller wipes data, and closes the result.
func Decode(data, passphrase []byte) (Secret, error) {
	der, err := findDER(data, passphrase)
	if err != nil {
		return Secret{}, err
	}
	if _, err := publicOf(der); err != nil {
		clear(der)
		return Secret{}, err
	}
	buf, err := secmem.Move(der)
	if err != nil {
		return Secret{}, err
	}
	return Secret{buf}, nil
}

// findDER returns PKCS #8 in memory of its own.
func findDER(data, passphrase []byte) ([]byte, error) {
	if len(data) > 0 && data[0] == 0x30 {
		if plain, err := decryptPKCS8(data, passphrase); err == nil || errors.Is(err, ErrPassphrase) {
			return plain, err
		}
		return bytes.Clone(data), nil
	}
	for {
		block, rest := pem.Decode(data)
		if block == nil {
			return nil, errors.New("read private key: no PEM block of a private key")
		}
		if block.Headers["DEK-Info"] != "" {
			return nil, errors.New("read private key: encrypted in the old way of PEM; convert it with: openssl pkcs8 -topk8 -v2 aes-256-cbc")
		}
		switch block.Type {
		case "PRIVATE KEY":
			return block.Bytes, nil
		case "ENCRYPTED PRIVATE KEY":
			return decryptPKCS8(block.Bytes, passphrase)
		case "RSA PRIVATE KEY":
			return toPKCS8(x509.ParsePKCS1PrivateKey(block.Bytes))
		case "EC PRIVATE KEY":
			return toPKCS8(x509.ParseECPrivateKey(block.Bytes))
		}
		data = rest
	}
}

var errKind = errors.New("not of a type that is used here: RSA, ECDSA on P-256, P-384 or P-521, Ed25519")

func toPKCS8[K any](key K, err error) ([]byte, error) {
	if err != nil {
		return nil, fmt.Errorf("read private key: damaged, or %w", errKind) // the library's text may quote it
	}
	return x509.MarshalPKCS8PrivateKey(key)
}

// publicOf is the public half of a key that this cluster can use.
func publicOf(pkcs8 []byte) (crypto.PublicKey, error) {
	parsed, err := x509.ParsePKCS8PrivateKey(pkcs8)
	if err != nil {
		return nil, fmt.Errorf("read private key: not PKCS #8, damaged, or %w", errKind) // likewise
	}
	switch k := parsed.(type) {
	case *rsa.PrivateKey:
		if n := k.N.BitLen(); n < minRSA || n > maxRSA {
			return nil, fmt.Errorf("read private key: RSA of %d bits, want %d to %d", n, minRSA, maxRSA)
		}
		if len(k.Primes) != 2 {
			return nil, fmt.Errorf("read private key: RSA with %d primes, want 2", len(k.Primes))
		}
		return k.Public(), nil
	case *ecdsa.PrivateKey:
		if name := k.Curve.Params().Name; name == "P-224" {
			return nil, errors.New("read private key: P-224 is no curve of TLS 1.3")
		}
		return k.Public(), nil
	case ed25519.PrivateKey:
		return k.Public(), nil
	}
	return nil, fmt.Errorf("read private key: a %T, want RSA, ECDSA or Ed25519", parsed)
}

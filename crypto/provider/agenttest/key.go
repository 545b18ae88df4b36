// SPDX-License-Identifier: Apache-2.0

package agenttest

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"pno/crypto/engine/enginetest"
	"pno/crypto/keyref"
	"pno/crypto/signing"
)

// Kinds are the types of key that New knows, by name.
var Kinds = []string{"rsa2048", "rsa3072", "rsa4096", "p256", "p384", "ed25519"}

// Key is a private key with a self-signed certificate for localhost and
// 127.0.0.1.
type Key struct {
	Kind      string
	ID        signing.KeyID
	Signer    crypto.Signer
	TLS13Only bool
	SPKI      []byte
	Cert      []byte // PEM
}

var (
	madeMu sync.Mutex
	made   = map[string]*Key{}
)

// NewKey returns the key of this kind, the same for every caller in a process:
// RSA keys take long to make.
func NewKey(t testing.TB, kind string) *Key {
	t.Helper()
	madeMu.Lock()
	defer madeMu.Unlock()
	if made[kind] == nil {
		k, err := certify(kind, enginetest.Key(t, names[kind]).Signer)
		if err != nil {
			t.Fatalf("make a %s key: %v", kind, err)
		}
		made[kind] = k
	}
	return made[kind]
}

// Another returns a new key of this kind.
func Another(t testing.TB, kind string) *Key {
	t.Helper()
	made, err := enginetest.NewKey(names[kind])
	if err != nil {
		t.Fatalf("make a %s key: %v", kind, err)
	}
	k, err := certify(kind, made.Signer)
	if err != nil {
		t.Fatalf("certify a %s key: %v", kind, err)
	}
	return k
}

// names are what enginetest calls the types.
var names = map[string]string{"rsa2048": "RSA-2048", "rsa3072": "RSA-3072", "rsa4096": "RSA-4096",
	"p256": "P-256", "p384": "P-384", "ed25519": "Ed25519"}

func certify(kind string, signer crypto.Signer) (*Key, error) {
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: "localhost"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment | x509.KeyUsageCertSign,
		IsCA:     true, BasicConstraintsValid: true,
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, signer.Public(), signer)
	if err != nil {
		return nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(signer.Public())
	if err != nil {
		return nil, err
	}
	return &Key{Kind: kind, ID: signing.IDOf(spki), Signer: signer, SPKI: spki,
		Cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}, nil
}

// Ref is the PEM block that takes the private key's place.
func (k *Key) Ref() []byte { return keyref.Ref{SPKI: k.SPKI, TLS13Only: k.TLS13Only}.PEM() }

// Files writes the certificate, the reference, and both in one, as proxies want
// them, and returns their paths.
func (k *Key) Files(t testing.TB) (cert, ref, both string) {
	t.Helper()
	dir := t.TempDir()
	for name, data := range map[string][]byte{
		"cert.pem": k.Cert, "ref.pem": k.Ref(), "both.pem": bytes.Join([][]byte{k.Cert, k.Ref()}, nil),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "cert.pem"), filepath.Join(dir, "ref.pem"), filepath.Join(dir, "both.pem")
}

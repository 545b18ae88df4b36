// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"pno/crypto/mtls"
)

// authority issues the certificates of one benchmark. Nothing of it outlives
// the benchmark's folder.
type authority struct {
	dir  string
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newAuthority(dir string) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the benchmark's authority: %w", err)
	}
	tmpl := template("pno benchmark")
	tmpl.IsCA, tmpl.BasicConstraintsValid, tmpl.KeyUsage = true, true, x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make the benchmark's authority: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("make the benchmark's authority: %w", err)
	}
	a := &authority{dir, key, cert}
	return a, a.write("ca.crt", "CERTIFICATE", der)
}

func template(name string) *x509.Certificate {
	now := time.Now()
	return &x509.Certificate{SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour)}
}

func (a *authority) write(name, label string, der []byte) error {
	if err := os.WriteFile(filepath.Join(a.dir, name), pem.EncodeToMemory(&pem.Block{Type: label, Bytes: der}), 0o600); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

// issue writes name.crt and name.key, for a URI or an IP address.
func (a *authority) issue(name string, key crypto.Signer, id *url.URL, ip net.IP) error {
	tmpl := template(name)
	tmpl.KeyUsage = x509.KeyUsageDigitalSignature
	tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	if id != nil {
		tmpl.URIs = []*url.URL{id}
	}
	if ip != nil {
		tmpl.IPAddresses = []net.IP{ip}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, key.Public(), a.key)
	if err != nil {
		return fmt.Errorf("issue the certificate of %s: %w", name, err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("issue the certificate of %s: %w", name, err)
	}
	if err := a.write(name+".crt", "CERTIFICATE", der); err != nil {
		return err
	}
	return a.write(name+".key", "PRIVATE KEY", secret)
}

// peer issues what one end of the cluster is known by.
func (a *authority) peer(name, id string) (mtls.Files, error) {
	u, err := url.Parse(id)
	if err != nil {
		return mtls.Files{}, fmt.Errorf("identity of %s: %w", name, err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return mtls.Files{}, fmt.Errorf("make the key of %s: %w", name, err)
	}
	at := func(file string) string { return filepath.Join(a.dir, file) }
	return mtls.Files{Cert: at(name + ".crt"), Key: at(name + ".key"), CA: at("ca.crt")}, a.issue(name, key, u, nil)
}

// server issues a certificate for an address, with a key of its own of a type
// that serverKeys knows.
func (a *authority) server(kind, addr string) error {
	key, err := serverKeys[kind]()
	if err != nil {
		return fmt.Errorf("make a %s key: %w", kind, err)
	}
	return a.issue(kind, key, nil, net.ParseIP(addr))
}

var serverKeys = map[string]func() (crypto.Signer, error){
	"rsa2048": func() (crypto.Signer, error) { return rsa.GenerateKey(rand.Reader, 2048) },
	"rsa3072": func() (crypto.Signer, error) { return rsa.GenerateKey(rand.Reader, 3072) },
	"rsa4096": func() (crypto.Signer, error) { return rsa.GenerateKey(rand.Reader, 4096) },
	"p256":    func() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) },
	"p384":    func() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P384(), rand.Reader) },
}

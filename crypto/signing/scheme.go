// SPDX-License-Identifier: Apache-2.0

package signing

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"errors"
	"fmt"
	"slices"
)

// Scheme is a TLS SignatureScheme code point (RFC 8446, 4.2.3).
type Scheme uint16

// The schemes that are known. Nothing with SHA-1 or MD5 is.
const (
	RSAPKCS1SHA256  Scheme = 0x0401
	RSAPKCS1SHA384  Scheme = 0x0501
	RSAPKCS1SHA512  Scheme = 0x0601
	ECDSAP256SHA256 Scheme = 0x0403
	ECDSAP384SHA384 Scheme = 0x0503
	ECDSAP521SHA512 Scheme = 0x0603
	RSAPSSSHA256    Scheme = 0x0804
	RSAPSSSHA384    Scheme = 0x0805
	RSAPSSSHA512    Scheme = 0x0806
	Ed25519         Scheme = 0x0807
)

// family is the arithmetic behind a scheme.
type family uint8

const (
	pkcs1 family = iota + 1
	pss
	ecdsaFamily
	ed25519Family
)

type schemeInfo struct {
	name   string
	family family
	hash   crypto.Hash
	curve  elliptic.Curve // that TLS 1.3 ties to the scheme
}

var schemes = map[Scheme]schemeInfo{
	RSAPKCS1SHA256:  {"rsa_pkcs1_sha256", pkcs1, crypto.SHA256, nil},
	RSAPKCS1SHA384:  {"rsa_pkcs1_sha384", pkcs1, crypto.SHA384, nil},
	RSAPKCS1SHA512:  {"rsa_pkcs1_sha512", pkcs1, crypto.SHA512, nil},
	ECDSAP256SHA256: {"ecdsa_secp256r1_sha256", ecdsaFamily, crypto.SHA256, elliptic.P256()},
	ECDSAP384SHA384: {"ecdsa_secp384r1_sha384", ecdsaFamily, crypto.SHA384, elliptic.P384()},
	ECDSAP521SHA512: {"ecdsa_secp521r1_sha512", ecdsaFamily, crypto.SHA512, elliptic.P521()},
	RSAPSSSHA256:    {"rsa_pss_rsae_sha256", pss, crypto.SHA256, nil},
	RSAPSSSHA384:    {"rsa_pss_rsae_sha384", pss, crypto.SHA384, nil},
	RSAPSSSHA512:    {"rsa_pss_rsae_sha512", pss, crypto.SHA512, nil},
	Ed25519:         {"ed25519", ed25519Family, 0, nil},
}

// Schemes lists what is known, in the order of the code points.
func Schemes() []Scheme {
	var out []Scheme
	for s := range schemes {
		out = append(out, s)
	}
	slices.Sort(out)
	return out
}

// String is the name of RFC 8446.
func (s Scheme) String() string {
	if i, ok := schemes[s]; ok {
		return i.name
	}
	return fmt.Sprintf("scheme %#04x", uint16(s))
}

// Known tells whether this cluster signs with the scheme.
func (s Scheme) Known() bool { _, ok := schemes[s]; return ok }

// Hash is what the digest is made with; 0 for Ed25519, which has none.
func (s Scheme) Hash() crypto.Hash { return schemes[s].hash }

// PSS tells whether the padding is randomised RSA.
func (s Scheme) PSS() bool { return schemes[s].family == pss }

// RSA tells whether the scheme is one of RSA's.
func (s Scheme) RSA() bool { return s.PSS() || schemes[s].family == pkcs1 }

// Deterministic tells whether one input always has one signature.
func (s Scheme) Deterministic() bool { return s == Ed25519 || schemes[s].family == pkcs1 }

// UnmarshalText reads the name of RFC 8446.
func (s *Scheme) UnmarshalText(b []byte) error {
	for code, i := range schemes {
		if i.name == string(b) {
			*s = code
			return nil
		}
	}
	return fmt.Errorf("%q is not a signature scheme; use a name of TLS 1.3, as rsa_pss_rsae_sha256", b)
}

// MarshalText writes the name of RFC 8446.
func (s Scheme) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Fits tells whether keys of this type sign with the scheme. In TLS 1.2 an
// ECDSA code point names the hash alone, so any curve fits each.
func (s Scheme) Fits(pub crypto.PublicKey) bool {
	switch f := schemes[s].family; pub.(type) {
	case *rsa.PublicKey:
		return f == pkcs1 || f == pss
	case *ecdsa.PublicKey:
		return f == ecdsaFamily
	case ed25519.PublicKey:
		return f == ed25519Family
	}
	return false
}

// fits13 is Fits for TLS 1.3, where PKCS #1 is gone and a scheme names a curve.
func (s Scheme) fits13(pub crypto.PublicKey) bool {
	if k, ok := pub.(*ecdsa.PublicKey); ok {
		return s.Fits(pub) && k.Curve == schemes[s].curve
	}
	return s.Fits(pub) && schemes[s].family != pkcs1
}

// FromOpts finds the scheme that a crypto.Signer is asked for.
func FromOpts(pub crypto.PublicKey, opts crypto.SignerOpts) (Scheme, error) {
	want := ecdsaFamily
	switch pub.(type) {
	case *rsa.PublicKey:
		want = pkcs1
		if o, ok := opts.(*rsa.PSSOptions); ok {
			if h := opts.HashFunc(); o.SaltLength != rsa.PSSSaltLengthEqualsHash && (h == 0 || o.SaltLength != h.Size()) {
				return 0, errors.New("sign: TLS wants a PSS salt as long as the digest")
			}
			want = pss
		}
	case ed25519.PublicKey:
		want = ed25519Family
		if o, ok := opts.(*ed25519.Options); ok && o.Context != "" {
			return 0, errors.New("sign: Ed25519 with a context is not a TLS scheme")
		}
	}
	for s, i := range schemes {
		if i.family == want && i.hash == opts.HashFunc() {
			return s, nil
		}
	}
	return 0, fmt.Errorf("sign: no TLS scheme for %v with a %T", opts.HashFunc(), pub)
}

// SPDX-License-Identifier: Apache-2.0

package keystore

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"math/big"
)

// matches tells whether PKCS #8 says that it is the other half of a public key.
// It copies nothing but public numbers, where a parser would leave the private
// ones on the Go heap. A key that does not name its public half passes: the
// engine that loads it computes, and tells.
func matches(pkcs8 []byte, public crypto.PublicKey) bool {
	outer, _ := element(pkcs8, tagSequence)
	_, outer = element(outer, tagInteger)
	_, outer = element(outer, tagSequence)
	inner, _ := element(outer, tagOctets)
	switch pub := public.(type) {
	case *rsa.PublicKey: // RSAPrivateKey, RFC 8017
		inner, _ = element(inner, tagSequence)
		_, inner = element(inner, tagInteger)
		n, rest := element(inner, tagInteger)
		e, _ := element(rest, tagInteger)
		return pub.N.Cmp(new(big.Int).SetBytes(n)) == 0 && big.NewInt(int64(pub.E)).Cmp(new(big.Int).SetBytes(e)) == 0
	case *ecdsa.PublicKey: // ECPrivateKey, RFC 5915
		inner, _ = element(inner, tagSequence)
		_, inner = element(inner, tagInteger)
		secret, rest := element(inner, tagOctets)
		if at, after := element(rest, tagCurve); at != nil {
			rest = after
		}
		named, _ := element(rest, tagPoint)
		bits, _ := element(named, tagBits)
		want, err := pub.Bytes()
		return secret != nil && err == nil && (bits == nil || bytes.Equal(bits[1:], want))
	}
	return inner != nil
}

// The identifiers of DER that these structures have.
const (
	tagInteger  = 0x02
	tagBits     = 0x03
	tagOctets   = 0x04
	tagSequence = 0x30
	tagCurve    = 0xa0
	tagPoint    = 0xa1
)

// element takes a DER element apart, and returns what follows it; nil when it is
// another one, empty, or cut.
func element(der []byte, tag byte) (body, rest []byte) {
	if len(der) < 2 || der[0] != tag {
		return nil, nil
	}
	n, der := int(der[1]), der[2:]
	if n >= 0x80 {
		digits := n & 0x7f
		if digits == 0 || digits > 3 || digits > len(der) {
			return nil, nil
		}
		n = 0
		for _, b := range der[:digits] {
			n = n<<8 | int(b)
		}
		der = der[digits:]
	}
	if n == 0 || n > len(der) {
		return nil, nil
	}
	return der[:n:n], der[n:]
}

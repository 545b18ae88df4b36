// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"

	"pno/crypto/signing"
)

// Rejecter makes up the premaster secrets that stand for bad padding. They
// depend on the key and the ciphertext alone: whoever sends one ciphertext
// twice must not learn from two different answers that it was rejected.
type Rejecter struct{ secret [sha256.Size]byte }

// Wipe forgets the secret.
func (r *Rejecter) Wipe() { clear(r.secret[:]) }

// NewRejecter derives the secret from the private key.
func NewRejecter(pkcs8 []byte) *Rejecter {
	// That of a long key is that of its hash, which HMAC would make of it and leave
	// the end of the key in memory.
	h := sha256.New()
	h.Write(pkcs8)
	sum := h.Sum(nil)
	for range sha256.BlockSize {
		h.Write([]byte{0}) // one by one: these are kept, in the place of the key
	}
	mac := hmac.New(sha256.New, sum)
	mac.Write([]byte("pno implicit rejection"))
	r := new(Rejecter)
	mac.Sum(r.secret[:0])
	return r
}

// Instead is the premaster secret for a ciphertext that is rejected.
func (r *Rejecter) Instead(ciphertext []byte) []byte {
	var out []byte
	for i := byte(0); len(out) < signing.PremasterLen; i++ {
		mac := hmac.New(sha256.New, r.secret[:])
		mac.Write([]byte{i})
		mac.Write(ciphertext)
		out = mac.Sum(out)
	}
	return out[:signing.PremasterLen]
}

// CheckVersion puts instead in the place of a premaster secret that does not
// begin with the version, in constant time.
func CheckVersion(premaster, instead []byte, version uint16) {
	good := subtle.ConstantTimeEq(int32(binary.BigEndian.Uint16(premaster)), int32(version))
	subtle.ConstantTimeCopy(1-good, premaster, instead)
}

// Unpad takes the premaster secret out of a decrypted PKCS #1 block, or instead
// when block is no such thing. The time it takes depends on the lengths alone.
func Unpad(block, instead []byte, version uint16) []byte {
	at := len(block) - signing.PremasterLen
	good := subtle.ConstantTimeByteEq(block[0], 0) & subtle.ConstantTimeByteEq(block[1], 2) &
		subtle.ConstantTimeByteEq(block[at-1], 0)
	for _, b := range block[2 : at-1] {
		good &= 1 - subtle.ConstantTimeByteEq(b, 0)
	}
	out := append([]byte(nil), block[at:]...)
	subtle.ConstantTimeCopy(1-good, out, instead)
	CheckVersion(out, instead, version)
	return out
}

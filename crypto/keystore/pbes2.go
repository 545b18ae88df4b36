// SPDX-License-Identifier: Apache-2.0

package keystore

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/des"
	"crypto/pbkdf2"
	"crypto/sha1" // what the file says it was derived with
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"hash"
)

// Encrypted PKCS #8 (RFC 5958) under PBES2 with PBKDF2 (RFC 8018), as openssl
// writes it.

var (
	oidPBES2  = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 13}
	oidPBKDF2 = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 12}
)

type encryptedKey struct {
	Algorithm pkix.AlgorithmIdentifier
	Data      []byte
}

type pbes2Params struct {
	KDF, Encryption pkix.AlgorithmIdentifier
}

type pbkdf2Params struct {
	Salt       []byte
	Iterations int
	KeyLength  int                      `asn1:"optional"`
	PRF        pkix.AlgorithmIdentifier `asn1:"optional"`
}

// prfs are the hashes of PBKDF2 by their identifier.
var prfs = map[string]func() hash.Hash{
	"":                    sha1.New, // what RFC 8018 means by none
	"1.2.840.113549.2.7":  sha1.New,
	"1.2.840.113549.2.9":  sha256.New,
	"1.2.840.113549.2.10": sha512.New384,
	"1.2.840.113549.2.11": sha512.New,
	"1.2.840.113549.2.8":  sha256.New224,
	"1.2.840.113549.2.12": sha512.New512_224,
	"1.2.840.113549.2.13": sha512.New512_256,
}

type blockMode struct {
	keyLen int
	block  func([]byte) (cipher.Block, error)
}

var blockModes = map[string]blockMode{
	"2.16.840.1.101.3.4.1.2":  {16, aes.NewCipher},
	"2.16.840.1.101.3.4.1.22": {24, aes.NewCipher},
	"2.16.840.1.101.3.4.1.42": {32, aes.NewCipher},
	"1.2.840.113549.3.7":      {24, des.NewTripleDESCipher},
}

// maxIterations bounds the work that a file can ask for to some seconds; the
// fuzzer has less time.
var maxIterations = 10_000_000

var errEncrypted = errors.New("read private key: not an encrypted key in a form that is known; convert it with: openssl pkcs8 -topk8 -v2 aes-256-cbc")

func decryptPKCS8(der, passphrase []byte) ([]byte, error) {
	var outer encryptedKey
	if rest, err := asn1.Unmarshal(der, &outer); err != nil || len(rest) > 0 || !outer.Algorithm.Algorithm.Equal(oidPBES2) {
		return nil, errEncrypted
	}
	var params pbes2Params
	var kdf pbkdf2Params
	var iv []byte
	if _, err := asn1.Unmarshal(outer.Algorithm.Parameters.FullBytes, &params); err != nil {
		return nil, errEncrypted
	}
	if _, err := asn1.Unmarshal(params.KDF.Parameters.FullBytes, &kdf); err != nil || !params.KDF.Algorithm.Equal(oidPBKDF2) {
		return nil, errEncrypted
	}
	mode, known := blockModes[params.Encryption.Algorithm.String()]
	prf := prfs[kdf.PRF.Algorithm.String()]
	if _, err := asn1.Unmarshal(params.Encryption.Parameters.FullBytes, &iv); err != nil || !known || prf == nil {
		return nil, errEncrypted
	}
	if kdf.Iterations < 1 || kdf.Iterations > maxIterations {
		return nil, fmt.Errorf("read private key: %d rounds of key derivation, want 1 to %d", kdf.Iterations, maxIterations)
	}
	if passphrase == nil {
		return nil, fmt.Errorf("read private key: %w", ErrPassphrase)
	}
	key, err := pbkdf2.Key(prf, string(passphrase), kdf.Salt, kdf.Iterations, mode.keyLen)
	if err != nil {
		return nil, errEncrypted
	}
	defer clear(key)
	block, err := mode.block(key)
	if err != nil || len(iv) != block.BlockSize() || len(outer.Data) == 0 || len(outer.Data)%block.BlockSize() != 0 {
		return nil, errEncrypted
	}
	plain := make([]byte, len(outer.Data))
	cipher.NewCBCDecrypter(block, iv).CryptBlocks(plain, outer.Data)
	return unpadCBC(plain, block.BlockSize())
}

func unpadCBC(plain []byte, size int) ([]byte, error) {
	n := int(plain[len(plain)-1])
	good := subtle.ConstantTimeLessOrEq(1, n) & subtle.ConstantTimeLessOrEq(n, size)
	if good == 1 {
		for _, b := range plain[len(plain)-n:] {
			good &= subtle.ConstantTimeByteEq(b, byte(n))
		}
	}
	if good != 1 || plain[0] != 0x30 {
		clear(plain)
		return nil, fmt.Errorf("read private key: %w", ErrPassphrase)
	}
	return plain[:len(plain)-n], nil
}

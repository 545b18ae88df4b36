// SPDX-License-Identifier: Apache-2.0

package keystore

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"pno/crypto/secmem"
)

// KEK is a key that seals the keys of keys.
type KEK interface {
	// ID tells KEKs apart; it is stored in the clear.
	ID() string
	// Wrap and Unwrap seal and open a short secret, bound to aad.
	Wrap(secret, aad []byte) ([]byte, error)
	Unwrap(wrapped, aad []byte) ([]byte, error)
	Close() error
}

const kekLen = 32

// OpenKEK finds a KEK by its specification:
//
//	file:/path             32 bytes, raw or in hexadecimal or base64; mode 0600
//	credential:name        likewise, in systemd's $CREDENTIALS_DIRECTORY
//	env:NAME               hexadecimal or base64, in a variable of the environment
//	pkcs11:module=/path;token=label;object=label;pin-file=/path
func OpenKEK(spec string) (KEK, error) {
	kind, rest, _ := strings.Cut(spec, ":")
	if rest == "" {
		return nil, fmt.Errorf("open KEK %q: write file:/path, credential:name, env:NAME or pkcs11:…", spec)
	}
	switch kind {
	case "file":
		return readKEK(spec, rest)
	case "credential":
		dir := os.Getenv("CREDENTIALS_DIRECTORY")
		if dir == "" || rest != filepath.Base(rest) {
			return nil, fmt.Errorf("open KEK %q: no such credential; start as a service with LoadCredentialEncrypted=%s", spec, rest)
		}
		return readKEK(spec, filepath.Join(dir, rest))
	case "env":
		return parseKEK(spec, []byte(os.Getenv(rest)))
	case "pkcs11":
		return openToken(rest)
	}
	return nil, fmt.Errorf("open KEK %q: %q is not a kind of KEK; write file, credential, env or pkcs11", spec, kind)
}

func readKEK(spec, path string) (KEK, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("open KEK %q: %w", spec, err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("open KEK %q: others may read the file (mode %#o); chmod 600 it", spec, info.Mode().Perm())
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("open KEK %q: %w", spec, err)
	}
	return parseKEK(spec, data)
}

func parseKEK(spec string, data []byte) (KEK, error) {
	defer clear(data)
	raw := data
	if len(raw) != kekLen {
		text := string(bytes.TrimSpace(data))
		var err error
		if raw, err = hex.DecodeString(text); err != nil || len(raw) != kekLen {
			raw, err = base64.StdEncoding.DecodeString(text)
		}
		if err != nil || len(raw) != kekLen {
			return nil, fmt.Errorf("open KEK %q: want %d bytes, raw or in hexadecimal or base64; make one with: openssl rand -hex %d", spec, kekLen, kekLen)
		}
	}
	sum := sha256.Sum256(append([]byte("pno kek "), raw...))
	buf, err := secmem.Move(raw)
	if err != nil {
		return nil, err
	}
	return &softKEK{id: "aes-" + hex.EncodeToString(sum[:8]), key: buf}, nil
}

// NewKEKFile writes a fresh KEK to a file that is not there yet.
func NewKEKFile(path string) error {
	raw := make([]byte, kekLen)
	rand.Read(raw)
	defer clear(raw)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make KEK: %s is there already; keys sealed with it would be lost", path)
	}
	if err != nil {
		return fmt.Errorf("make KEK: %w", err)
	}
	_, err = fmt.Fprintf(f, "%x\n", raw)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("make KEK: %w", err)
	}
	return nil
}

type softKEK struct {
	id  string
	key *secmem.Buffer
}

func (k *softKEK) ID() string { return k.id }

func (k *softKEK) Wrap(secret, aad []byte) ([]byte, error) { return seal(k.key.Bytes(), secret, aad) }

func (k *softKEK) Unwrap(wrapped, aad []byte) ([]byte, error) {
	return unseal(k.key.Bytes(), wrapped, aad)
}

func (k *softKEK) Close() error {
	k.key.Free()
	return nil
}

func newAEAD(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

func seal(key, secret, aad []byte) ([]byte, error) {
	a, err := newAEAD(key)
	if err != nil {
		return nil, err
	}
	return a.Seal(nil, nil, secret, aad), nil
}

var errSealed = errors.New("the seal does not open: another key, or somebody changed it")

// unsealInto opens a seal into locked memory, and nowhere else.
func unsealInto(key, sealed, aad []byte) (*secmem.Buffer, error) {
	a, err := newAEAD(key)
	if err != nil {
		return nil, err
	}
	n := len(sealed) - a.Overhead()
	if n <= 0 {
		return nil, errSealed
	}
	buf, err := secmem.New(n)
	if err != nil {
		return nil, err
	}
	if _, err := a.Open(buf.Bytes()[:0], nil, sealed, aad); err != nil {
		buf.Free()
		return nil, errSealed
	}
	return buf, nil
}

func unseal(key, sealed, aad []byte) ([]byte, error) {
	a, err := newAEAD(key)
	if err != nil {
		return nil, err
	}
	out, err := a.Open(nil, nil, sealed, aad)
	if err != nil {
		return nil, errSealed
	}
	return out, nil
}

// SPDX-License-Identifier: Apache-2.0

// Package keyref is the PEM block that a proxy is given in place of a private
// key: the name of the key and its public half, laid out as struct pno_key_ref
// of crypto/agent/protocol.h. It holds no secret.
//
// The functions keep no state; any goroutine may call them.
package keyref

import (
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"

	"pno/crypto/signing"
)

// Label is the PEM type.
const Label = "PNO PRIVATE KEY"

const (
	magic    = 0x4b304e50
	version  = 1
	headSize = 48
	maxSPKI  = 2048

	flagTLS13Only = 1
)

// Ref is a key by name.
type Ref struct {
	SPKI      []byte // SubjectPublicKeyInfo, DER
	TLS13Only bool
}

// Head is the fixed part of the contents.
type Head struct {
	Magic    uint32        `c:"magic"`
	Version  uint16        `c:"version"`
	Flags    uint16        `c:"flags"`
	Key      signing.KeyID `c:"key_id"`
	SPKILen  uint32        `c:"spki_len"`
	Reserved uint32        `c:"reserved"`
}

// Key is the name of the key.
func (r Ref) Key() signing.KeyID { return signing.IDOf(r.SPKI) }

// PEM encodes the block.
func (r Ref) PEM() []byte {
	h := Head{Magic: magic, Version: version, Key: r.Key(), SPKILen: uint32(len(r.SPKI))}
	if r.TLS13Only {
		h.Flags = flagTLS13Only
	}
	b, err := binary.Append(nil, binary.LittleEndian, h)
	if err != nil {
		panic("keyref: a head without a fixed size: " + err.Error())
	}
	return pem.EncodeToMemory(&pem.Block{Type: Label, Bytes: append(b, r.SPKI...)})
}

// ErrRef is wrapped by every error of Parse.
var ErrRef = errors.New("not a key reference")

// Parse decodes the contents of a block.
func Parse(b []byte) (Ref, error) {
	var h Head
	if len(b) <= headSize || len(b) > headSize+maxSPKI {
		return Ref{}, fmt.Errorf("%d bytes: %w", len(b), ErrRef)
	}
	if _, err := binary.Decode(b, binary.LittleEndian, &h); err != nil {
		return Ref{}, fmt.Errorf("%w: %v", ErrRef, err)
	}
	switch {
	case h.Magic != magic:
		return Ref{}, fmt.Errorf("magic %#x: %w", h.Magic, ErrRef)
	case h.Version != version:
		return Ref{}, fmt.Errorf("version %d, this program reads %d: %w", h.Version, version, ErrRef)
	case h.Flags&^flagTLS13Only != 0 || h.Reserved != 0:
		return Ref{}, fmt.Errorf("unknown flags: %w", ErrRef)
	case int64(h.SPKILen) != int64(len(b)-headSize):
		return Ref{}, fmt.Errorf("public key of %d bytes, %d are there: %w", h.SPKILen, len(b)-headSize, ErrRef)
	}
	r := Ref{SPKI: append([]byte(nil), b[headSize:]...), TLS13Only: h.Flags&flagTLS13Only != 0}
	if r.Key() != h.Key {
		return Ref{}, fmt.Errorf("the key id is not that of the public key: %w", ErrRef)
	}
	if _, err := x509.ParsePKIXPublicKey(r.SPKI); err != nil {
		return Ref{}, fmt.Errorf("%w: %v", ErrRef, err)
	}
	return r, nil
}

// ParsePEM finds the first such block of a file and decodes it.
func ParsePEM(data []byte) (Ref, error) {
	for {
		block, rest := pem.Decode(data)
		if block == nil {
			return Ref{}, fmt.Errorf("no %q block: %w", Label, ErrRef)
		}
		if block.Type == Label {
			return Parse(block.Bytes)
		}
		data = rest
	}
}

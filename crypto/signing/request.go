// SPDX-License-Identifier: Apache-2.0

package signing

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	_ "crypto/sha512" // SHA-384 and SHA-512 of the schemes
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
)

// KeyID names a key: the SHA-256 of its SubjectPublicKeyInfo.
type KeyID [sha256.Size]byte

// IDOf is the name of a key with this SubjectPublicKeyInfo.
func IDOf(spki []byte) KeyID { return sha256.Sum256(spki) }

// IDOfPublic is the name of the key with this public half.
func IDOfPublic(pub crypto.PublicKey) (KeyID, error) {
	spki, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return KeyID{}, fmt.Errorf("encode public key: %w", err)
	}
	return IDOf(spki), nil
}

// ParseKeyID reads what String writes.
func ParseKeyID(s string) (KeyID, error) {
	var id KeyID
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(id) {
		return id, fmt.Errorf("%q is not a key id; it has %d hexadecimal digits", s, 2*len(id))
	}
	copy(id[:], b)
	return id, nil
}

// String is the id in hexadecimal.
func (id KeyID) String() string { return hex.EncodeToString(id[:]) }

// Input is what the data of a Request is.
type Input uint8

// The numbers are those of pno.crypto.v1 and of crypto/agent/protocol.h.
const (
	Digest         Input = 1 // of what is signed, made with the hash of the scheme
	Message        Input = 2 // what is signed, whole: Ed25519 only
	TLS13Server    Input = 3 // a TLS 1.3 transcript hash; the worker builds the CertificateVerify content
	TLS13Client    Input = 4
	TLS12Premaster Input = 5 // an encrypted premaster secret, and the scheme is the version offered
)

// String is the name in audit records.
func (i Input) String() string {
	switch i {
	case Digest:
		return "digest"
	case Message:
		return "message"
	case TLS13Server:
		return "tls13_server"
	case TLS13Client:
		return "tls13_client"
	case TLS12Premaster:
		return "tls12_premaster"
	}
	return fmt.Sprintf("input_%d", uint8(i))
}

// Bounds of what travels.
const (
	MaxInput  = 2048 // bytes of data: an Ed25519 message, or RSA ciphertext
	MaxOutput = 1024 // bytes of a signature: RSA of 8192 bits
	// PremasterLen is what TLS12Premaster always answers with.
	PremasterLen = 48
)

// Request is one operation as it is asked for.
type Request struct {
	Key    KeyID
	Scheme Scheme
	Input  Input
	Data   []byte
}

// Task is a checked Request, in the form that engines compute: sign Data, which
// is a digest (with Ed25519 a message), or decrypt it.
type Task struct {
	Scheme  Scheme
	Data    []byte
	Decrypt bool   // Data is an encrypted premaster secret
	Version uint16 // that the ClientHello offered, when Decrypt
}

const (
	serverContext = "TLS 1.3, server CertificateVerify\x00"
	clientContext = "TLS 1.3, client CertificateVerify\x00"
)

var spaces = bytes.Repeat([]byte{' '}, 64)

// Content13 is what a CertificateVerify signs (RFC 8446, 4.4.3).
func Content13(in Input, transcript []byte) []byte {
	context := serverContext
	if in == TLS13Client {
		context = clientContext
	}
	out := make([]byte, 0, len(spaces)+len(context)+len(transcript))
	out = append(append(out, spaces...), context...)
	return append(out, transcript...)
}

// Split13 takes what Content13 builds apart again; ok is false for anything else.
func Split13(content []byte) (in Input, transcript []byte, ok bool) {
	rest, ok := bytes.CutPrefix(content, spaces)
	if !ok {
		return 0, nil, false
	}
	in = TLS13Server
	transcript, ok = bytes.CutPrefix(rest, []byte(serverContext))
	if !ok {
		in = TLS13Client
		transcript, ok = bytes.CutPrefix(rest, []byte(clientContext))
	}
	return in, transcript, ok && transcriptLen(len(transcript))
}

func transcriptLen(n int) bool { return n == 32 || n == 48 }

// Prepare checks a request against the key that it names. The task may share
// the request's data. The error is an *Error.
func Prepare(r *Request, pub crypto.PublicKey, tls13Only bool) (Task, error) {
	if len(r.Data) == 0 || len(r.Data) > MaxInput {
		return Task{}, Errorf(BadInput, "%d bytes, want 1 to %d", len(r.Data), MaxInput)
	}
	if tls13Only && r.Input != TLS13Server && r.Input != TLS13Client {
		return Task{}, Errorf(Denied, "the key signs TLS 1.3 transcripts only")
	}
	if r.Input == TLS12Premaster {
		return preparePremaster(r, pub)
	}
	if !r.Scheme.Known() {
		return Task{}, Errorf(BadScheme, "%v is not known", r.Scheme)
	}
	if !r.Scheme.Fits(pub) {
		return Task{}, Errorf(BadScheme, "%v with a %s key", r.Scheme, KeyType(pub))
	}
	t := Task{Scheme: r.Scheme, Data: r.Data}
	switch r.Input {
	case Digest:
		if r.Scheme == Ed25519 {
			return Task{}, Errorf(BadInput, "Ed25519 signs a message, not a digest")
		}
		if want := r.Scheme.Hash().Size(); len(r.Data) != want {
			return Task{}, Errorf(BadInput, "a digest of %d bytes for %v, want %d", len(r.Data), r.Scheme, want)
		}
	case Message:
		if r.Scheme != Ed25519 {
			return Task{}, Errorf(BadInput, "%v signs a digest, not a message", r.Scheme)
		}
	case TLS13Server, TLS13Client:
		if !r.Scheme.fits13(pub) {
			return Task{}, Errorf(BadScheme, "TLS 1.3 has no %v with a %s key", r.Scheme, KeyType(pub))
		}
		if !transcriptLen(len(r.Data)) {
			return Task{}, Errorf(BadInput, "a transcript hash of %d bytes, want 32 or 48", len(r.Data))
		}
		t.Data = Content13(r.Input, r.Data)
		if r.Scheme != Ed25519 {
			h := r.Scheme.Hash().New()
			h.Write(t.Data)
			t.Data = h.Sum(nil)
		}
	default:
		return Task{}, Errorf(BadInput, "unknown kind of input %d", r.Input)
	}
	return t, nil
}

func preparePremaster(r *Request, pub crypto.PublicKey) (Task, error) {
	k, ok := pub.(*rsa.PublicKey)
	if !ok {
		return Task{}, Errorf(BadScheme, "decryption with a %s key", KeyType(pub))
	}
	if len(r.Data) != k.Size() {
		return Task{}, Errorf(BadInput, "%d bytes of ciphertext, want %d", len(r.Data), k.Size())
	}
	return Task{Data: r.Data, Decrypt: true, Version: uint16(r.Scheme)}, nil
}

var errWrongSignature = errors.New("the signature does not verify")

// Verify checks the result of a task against the public key. For a decryption
// only the length can be checked.
func Verify(pub crypto.PublicKey, t *Task, sig []byte) error {
	if t.Decrypt {
		if len(sig) != PremasterLen {
			return fmt.Errorf("a premaster secret of %d bytes", len(sig))
		}
		return nil
	}
	ok := false
	switch k := pub.(type) {
	case *rsa.PublicKey:
		if t.Scheme.PSS() {
			ok = rsa.VerifyPSS(k, t.Scheme.Hash(), t.Data, sig, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}) == nil
		} else {
			ok = rsa.VerifyPKCS1v15(k, t.Scheme.Hash(), t.Data, sig) == nil
		}
	case *ecdsa.PublicKey:
		ok = ecdsa.VerifyASN1(k, t.Data, sig)
	case ed25519.PublicKey:
		ok = ed25519.Verify(k, t.Data, sig)
	}
	if !ok {
		return errWrongSignature
	}
	return nil
}

// KeyType is the type of a key in words, as RSA-2048 or P-256.
func KeyType(pub crypto.PublicKey) string {
	switch k := pub.(type) {
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA-%d", k.N.BitLen())
	case *ecdsa.PublicKey:
		return k.Curve.Params().Name
	case ed25519.PublicKey:
		return "Ed25519"
	}
	return fmt.Sprintf("%T", pub)
}

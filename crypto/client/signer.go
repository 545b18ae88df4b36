// SPDX-License-Identifier: Apache-2.0

package client

import (
	"crypto"
	"errors"
	"fmt"
	"io"
	"time"

	"pno/crypto/signing"
)

// Signer is a remote key: the PrivateKey of a tls.Certificate.
type Signer struct {
	client *Client
	public crypto.PublicKey
	id     signing.KeyID
}

var (
	_ crypto.Signer        = (*Signer)(nil)
	_ crypto.MessageSigner = (*Signer)(nil)
)

// Signer returns the key whose public half this is; usually that of the
// certificate. Nobody is asked.
func (c *Client) Signer(public crypto.PublicKey) (*Signer, error) {
	id, err := signing.IDOfPublic(public)
	if err != nil {
		return nil, err
	}
	return &Signer{c, public, id}, nil
}

// Public implements crypto.Signer.
func (s *Signer) Public() crypto.PublicKey { return s.public }

// Sign implements crypto.Signer, for the schemes of TLS.
func (s *Signer) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	scheme, err := signing.FromOpts(s.public, opts)
	if err != nil {
		return nil, err
	}
	in := signing.Digest
	if scheme == signing.Ed25519 {
		in = signing.Message
	}
	return s.do(scheme, in, digest)
}

// SignMessage implements crypto.MessageSigner. crypto/tls calls it with what is
// to be signed, whole; of a TLS 1.3 handshake only the transcript hash is sent,
// so that keys which sign nothing else can be used.
func (s *Signer) SignMessage(_ io.Reader, msg []byte, opts crypto.SignerOpts) ([]byte, error) {
	scheme, err := signing.FromOpts(s.public, opts)
	if err != nil {
		return nil, err
	}
	if in, transcript, ok := signing.Split13(msg); ok {
		return s.do(scheme, in, transcript)
	}
	if scheme == signing.Ed25519 {
		return s.do(scheme, signing.Message, msg)
	}
	h := scheme.Hash().New()
	h.Write(msg)
	return s.do(scheme, signing.Digest, h.Sum(nil))
}

func (s *Signer) do(scheme signing.Scheme, in signing.Input, data []byte) ([]byte, error) {
	if len(data) > signing.MaxInput {
		return nil, errors.New("sign: the message is longer than a TLS handshake's")
	}
	out, err := s.client.Do(time.Time{}, &Op{Request: signing.Request{Key: s.id, Scheme: scheme, Input: in, Data: data}, Public: s.public})
	if err != nil {
		return nil, fmt.Errorf("sign with key %v: %w", s.id, err)
	}
	return out, nil
}

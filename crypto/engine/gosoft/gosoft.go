// SPDX-License-Identifier: Apache-2.0

// Package gosoft is the engine of Go's own crypto packages: everywhere, without
// cgo, and for RSA about a third as fast as libcrypto. While a key is loaded
// its numbers are on the Go heap.
//
// The engine owns its workers. Any goroutine may call its methods; see package
// engine for who owns what.
package gosoft

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"math/big"
	"runtime"

	"pno/crypto/engine"
	"pno/crypto/signing"
)

// Config sizes the engine; zero values mean one worker a processor and 1024
// operations.
type Config struct {
	Threads int
	Queue   int
}

type soft struct {
	*engine.Workers
	info engine.Info
}

type key struct {
	signer crypto.Signer
	reject *engine.Rejecter
}

// Close wipes what can be reached of the key. What Go's packages have copied for
// themselves is left to the garbage collector, which does not wipe it.
func (k *key) Close() {
	switch s := k.signer.(type) {
	case *rsa.PrivateKey:
		numbers := append([]*big.Int{s.D, s.Precomputed.Dp, s.Precomputed.Dq, s.Precomputed.Qinv}, s.Primes...)
		for _, n := range numbers {
			if n != nil {
				clear(n.Bits())
			}
		}
	case *ecdsa.PrivateKey:
		clear(s.D.Bits()) //nolint:staticcheck // to wipe it
	case ed25519.PrivateKey:
		clear(s)
	}
	k.reject.Wipe()
	k.signer, k.reject = nil, nil
}

// New starts the engine.
func New(cfg Config, sink engine.Sink) engine.Engine {
	if cfg.Threads == 0 {
		cfg.Threads = runtime.GOMAXPROCS(0)
	}
	if cfg.Queue == 0 {
		cfg.Queue = 1024
	}
	return &soft{
		Workers: engine.NewWorkers(cfg.Threads, cfg.Queue, 1, run, sink),
		info: engine.Info{Kind: "go", Detail: runtime.Version(), Capacity: cfg.Queue, Window: 2 * cfg.Threads, Batch: 1,
			Features: engine.Features("adx", "avx2", "bmi2", "sha512")},
	}
}

func (s *soft) Info() engine.Info { return s.info }

func (s *soft) Close() error {
	s.Workers.Close()
	return nil
}

func (s *soft) Load(m engine.Material) (engine.Key, error) {
	parsed, err := x509.ParsePKCS8PrivateKey(m.PKCS8)
	if err != nil {
		// The library's text may quote what it read.
		return nil, fmt.Errorf("load key %v: it is not PKCS #8", m.ID)
	}
	signer, ok := parsed.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("load key %v: a %T: %w", m.ID, parsed, engine.ErrUnsupported)
	}
	if k, ok := parsed.(*rsa.PrivateKey); ok {
		k.Precompute()
	}
	if pub, ok := signer.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(m.Public) {
		return nil, fmt.Errorf("load key %v: it is not the other half of the public key", m.ID)
	}
	return &key{signer: signer, reject: engine.NewRejecter(m.PKCS8)}, nil
}

func run(_ int, ops []*engine.Op) {
	for _, op := range ops {
		out, err := compute(op.Key.(*key), &op.Task)
		if err != nil {
			op.Err = signing.Errorf(signing.Internal, "go engine: %v", err)
			continue
		}
		op.Out = out
	}
}

func compute(k *key, t *signing.Task) ([]byte, error) {
	if t.Decrypt {
		r, ok := k.signer.(*rsa.PrivateKey)
		if !ok {
			return nil, engine.ErrUnsupported
		}
		instead := k.reject.Instead(t.Data)
		out := append([]byte(nil), instead...)
		if err := rsa.DecryptPKCS1v15SessionKey(nil, r, t.Data, out); err != nil { //nolint:staticcheck // it is what TLS-RSA does
			// Only for a ciphertext that is no number below the modulus, which
			// its sender knows; answered like any other.
			return instead, nil
		}
		engine.CheckVersion(out, instead, t.Version)
		return out, nil
	}
	var opts crypto.SignerOpts = t.Scheme.Hash()
	if t.Scheme.PSS() {
		opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: t.Scheme.Hash()}
	}
	return k.signer.Sign(rand.Reader, t.Data, opts)
}

// SPDX-License-Identifier: Apache-2.0

//go:build cgo && linux

package libcrypto

// #cgo CFLAGS: -std=gnu11 -O2 -Wall -Wextra
// #cgo LDFLAGS: -lcrypto
// #include <stdlib.h>
// #include "libcrypto.h"
// #include "locked.h"
import "C"

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"math/bits"
	"runtime"
	"unsafe"

	"pno/crypto/engine"
	"pno/crypto/signing"
)

// Available tells whether New can succeed in this build.
const Available = true

// maxBatch is how many operations go into C at once. The call itself costs
// well below a microsecond, so more would only make the first wait for the last.
const maxBatch = 4

type lib struct {
	workers *engine.Workers
	lc      *C.struct_pno_lc
	ops     []*C.struct_pno_lc_op // one array of maxBatch a worker
	info    engine.Info
}

// Unlocked tells why private keys are not as safe in memory as they should be;
// nil if they are.
func Unlocked() error {
	if why := C.pno_unlocked(); why != nil {
		return errors.New(C.GoString(why))
	}
	return nil
}

// Heap is how much of the locked memory for keys is used, and its size.
func Heap() (used, size int) {
	var u, s C.size_t
	C.pno_heap(&u, &s)
	return int(u), int(s)
}

type key struct {
	c      *C.struct_pno_lc_key
	public crypto.PublicKey
	reject *engine.Rejecter
}

func (k *key) Close() {
	C.pno_lc_key_free(k.c)
	k.reject.Wipe()
	k.c, k.reject = nil, nil
}

// New starts the engine.
func New(cfg Config, sink engine.Sink) (engine.Engine, error) {
	if cfg.Threads == 0 {
		cfg.Threads = runtime.GOMAXPROCS(0)
	}
	if cfg.Queue == 0 {
		cfg.Queue = 1024
	}
	if cfg.Heap < 0 || cfg.Heap > 0 && (cfg.Heap < MinHeap || cfg.Heap > MaxHeap || bits.OnesCount(uint(cfg.Heap)) != 1) {
		return nil, fmt.Errorf("start libcrypto engine: a heap of %d bytes, want a power of two from %d to %d", cfg.Heap, MinHeap, MaxHeap)
	}
	provider, query := C.CString(cfg.Provider), C.CString(cfg.PropQuery)
	defer C.free(unsafe.Pointer(provider))
	defer C.free(unsafe.Pointer(query))
	var why [C.PNO_LC_ERR]C.char
	lc := C.pno_lc_new(provider, query, C.size_t(cfg.Heap), &why[0])
	if lc == nil {
		return nil, fmt.Errorf("start libcrypto engine with provider %q: %s", cfg.Provider, C.GoString(&why[0]))
	}
	detail := "OpenSSL " + C.GoString(C.pno_lc_version())
	if cfg.Provider != "" {
		detail += ", provider " + cfg.Provider
	}
	l := &lib{lc: lc, info: engine.Info{Kind: "libcrypto", Detail: detail, Capacity: cfg.Queue, Window: 2 * maxBatch * cfg.Threads, Batch: maxBatch,
		Verifies: true, Features: features(cfg.Provider)}}
	for range cfg.Threads {
		l.ops = append(l.ops, (*C.struct_pno_lc_op)(C.calloc(maxBatch, C.sizeof_struct_pno_lc_op)))
	}
	l.workers = engine.NewWorkers(cfg.Threads, cfg.Queue, maxBatch, l.run, sink)
	return l, nil
}

// features are those that decide how fast OpenSSL's own providers sign. What a
// card's provider computes with is not the processor.
func features(provider string) []string {
	switch provider {
	case "", "default", "fips":
		return engine.Features("adx", "asimd", "avx2", "avx512ifma", "bmi2", "sha512")
	}
	return nil
}

func (l *lib) Info() engine.Info { return l.info }

func (l *lib) Submit(ops []*engine.Op) int { return l.workers.Submit(ops) }

// SubmitHere implements engine.Here.
func (l *lib) SubmitHere(op *engine.Op) bool { return l.workers.SubmitHere(op) }

func (l *lib) Close() error {
	l.workers.Close()
	for _, p := range l.ops {
		C.free(unsafe.Pointer(p))
	}
	C.pno_lc_free(l.lc)
	return nil
}

func (l *lib) Load(m engine.Material) (engine.Key, error) {
	if len(m.PKCS8) == 0 {
		return nil, fmt.Errorf("load key %v: no private key: %w", m.ID, engine.ErrUnsupported)
	}
	var why [C.PNO_LC_ERR]C.char
	spki, err := x509.MarshalPKIXPublicKey(m.Public)
	if err != nil {
		return nil, fmt.Errorf("load key %v: %w", m.ID, err)
	}
	// Pointers in a struct that is passed by value have to be pinned; that of the
	// secret is usually not of the Go heap, which is good as well.
	var pin runtime.Pinner
	defer pin.Unpin()
	der := func(b []byte) C.struct_pno_lc_der {
		pin.Pin(unsafe.SliceData(b))
		return C.struct_pno_lc_der{at: (*C.uint8_t)(unsafe.SliceData(b)), len: C.size_t(len(b))}
	}
	c := C.pno_lc_load(l.lc, der(m.PKCS8), der(spki), C.int(len(l.ops)), &why[0])
	if c == nil {
		return nil, fmt.Errorf("load key %v: %s", m.ID, C.GoString(&why[0]))
	}
	return &key{c: c, public: m.Public, reject: engine.NewRejecter(m.PKCS8)}, nil
}

func family(k *key, t *signing.Task) C.int {
	switch {
	case t.Decrypt:
		return C.PNO_LC_RAW
	case t.Scheme.PSS():
		return C.PNO_LC_PSS
	}
	switch k.public.(type) {
	case *rsa.PublicKey:
		return C.PNO_LC_PKCS1
	case ed25519.PublicKey:
		return C.PNO_LC_ED25519
	}
	return C.PNO_LC_ECDSA
}

func (l *lib) run(worker int, ops []*engine.Op) {
	batch := unsafe.Slice(l.ops[worker], maxBatch)
	for i, op := range ops {
		k, c := op.Key.(*key), &batch[i]
		c.key, c.family, c.rc, c.out_len = k.c, family(k, &op.Task), 0, 0
		if h := op.Task.Scheme.Hash(); h != 0 {
			c.bits = C.int(8 * h.Size())
		}
		c.in_len = C.uint32_t(copy(unsafe.Slice((*byte)(&c.in[0]), len(c.in)), op.Task.Data))
	}
	C.pno_lc_run(C.int(worker), l.ops[worker], C.int(len(ops)))
	for i, op := range ops {
		c := &batch[i]
		out := C.GoBytes(unsafe.Pointer(&c.out[0]), C.int(c.out_len))
		switch {
		case op.Task.Decrypt:
			op.Out = premaster(op.Key.(*key), &op.Task, out, c.rc == 0)
			clear(unsafe.Slice((*byte)(&c.out[0]), len(c.out)))
		case c.rc != 0:
			op.Err = signing.Errorf(signing.Internal, "libcrypto engine: %s", C.GoString(&c.err[0]))
		default:
			op.Out = out
		}
	}
}

// premaster removes the padding. Decryption fails only for a ciphertext that
// is no number below the modulus, which its sender knows.
func premaster(k *key, t *signing.Task, block []byte, decrypted bool) []byte {
	instead := k.reject.Instead(t.Data)
	if !decrypted || len(block) != len(t.Data) {
		return instead
	}
	return engine.Unpad(block, instead, t.Version)
}

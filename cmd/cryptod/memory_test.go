// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"testing"
	"time"

	"pno/crypto/client"
	"pno/crypto/cryptotest"
	"pno/crypto/engine/enginetest"
	"pno/crypto/engine/libcrypto"
	"pno/crypto/mtls/mtlstest"
	"pno/crypto/signing"
)

// The private numbers of keys that a worker has loaded, and used, are in locked
// memory and nowhere else; of a key that was removed there is nothing.
func TestSecretsStayLocked(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not root: the memory of processes that hide it cannot be read")
	}
	if !libcrypto.Available {
		t.Skip("built without cgo: Go's parser copies keys to its heap")
	}
	schemes := map[string]signing.Scheme{"RSA-2048": signing.RSAPSSSHA256, "RSA-3072": signing.RSAPKCS1SHA256,
		"P-256": signing.ECDSAP256SHA256, "P-384": signing.ECDSAP384SHA384, "Ed25519": signing.Ed25519}
	var kinds []string
	for kind := range schemes {
		kinds = append(kinds, kind)
	}
	store, dir, kek := cryptotest.NewStore(t, kinds...)
	ca := mtlstest.NewAuthority(t)
	w := newProcess(t, ca, "a", dir, kek, cryptotest.AllowAll)
	cl, err := client.NewCluster(client.Config{Identity: cryptotest.Identity(t, ca, cryptotest.ProxyURI), Workers: []string{w.addr},
		WorkerIdentity: cryptotest.WorkerURI, Verify: client.VerifyOff, Wait: 10 * time.Second, Stall: 20 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	for kind, scheme := range schemes {
		op := &client.Op{Request: signing.Request{Key: enginetest.Key(t, kind).ID, Scheme: scheme, Input: signing.Digest, Data: make([]byte, 32)}}
		switch scheme {
		case signing.Ed25519:
			op.Input = signing.Message
		case signing.ECDSAP384SHA384:
			op.Data = make([]byte, 48)
		}
		for range 20 { // by every thread of the engine
			if _, err := cl.Do(time.Now().Add(20*time.Second), op); err != nil {
				t.Fatalf("%s: %v", kind, err)
			}
		}
	}
	for _, kind := range kinds {
		c := cryptotest.CopiesIn(t, w.cmd.Process.Pid, cryptotest.Secrets(t, kind))
		t.Logf("%s: %d copies in locked memory, %d in other", kind, c.Safe, c.Plain)
		if c.Plain > 0 || c.Safe == 0 {
			t.Errorf("%s: %+v", kind, c)
		}
	}
	// The search tells memory that is not safe: Go's own engine keeps keys there.
	soft := newProcess(t, ca, "b", dir, kek, cryptotest.AllowAll, "engines: [{kind: go}]")
	if c := cryptotest.CopiesIn(t, soft.cmd.Process.Pid, cryptotest.Secrets(t, "RSA-2048")); c.Plain == 0 {
		t.Errorf("the search finds nothing on the Go heap of the go engine: %+v", c)
	}
	for _, kind := range kinds {
		e, err := store.Find(kind)
		if err != nil {
			t.Fatal(err)
		}
		if err := store.Remove(e); err != nil {
			t.Fatal(err)
		}
	}
	for _, kind := range kinds {
		secrets := cryptotest.Secrets(t, kind)
		var c cryptotest.Copies
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			if c = cryptotest.CopiesIn(t, w.cmd.Process.Pid, secrets); c == (cryptotest.Copies{}) || time.Now().After(deadline) {
				break
			}
		}
		if c != (cryptotest.Copies{}) {
			t.Errorf("%s, removed: %+v", kind, c)
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

package libcrypto

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"pno/crypto/engine"
	"pno/crypto/engine/enginetest"
	"pno/crypto/signing"
)

// smallHeap tells the test that it is the process with a heap of its own: there
// is one for each process, and other tests have the usual one.
const smallHeap = "PNO_TEST_SMALL_HEAP"

// A heap that is full of keys takes no more of them, says what to do, and all
// keys that are loaded go on signing.
func TestFullHeap(t *testing.T) {
	if !Available {
		t.Skip("built without cgo")
	}
	if os.Getenv(smallHeap) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestFullHeap$", "-test.v")
		cmd.Env = append(os.Environ(), smallHeap+"=1")
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "--- PASS: TestFullHeap") {
			t.Fatalf("%v\n%s", err, out)
		}
		t.Logf("%s", out)
		return
	}
	const threads = 16
	c := enginetest.NewCollector(1024)
	e, err := New(Config{Threads: threads, Queue: 1024, Heap: MinHeap}, c.Sink)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if _, err := New(Config{Heap: 2 * MinHeap}, c.Sink); err == nil || !strings.Contains(err.Error(), "smaller") {
		t.Errorf("a second heap: %v", err)
	}
	loaded := map[signing.Scheme][]engine.Key{}
	load := func(kind string, scheme signing.Scheme) error {
		k, err := e.Load(enginetest.Key(t, kind).Material)
		if err == nil {
			loaded[scheme] = append(loaded[scheme], k)
		}
		return err
	}
	kinds := map[string]signing.Scheme{"RSA-4096": signing.RSAPSSSHA256, "P-256": signing.ECDSAP256SHA256, "Ed25519": signing.Ed25519}
	for kind, scheme := range kinds {
		if err := load(kind, scheme); err != nil {
			t.Fatal(err)
		}
	}
	for {
		if err = load("RSA-2048", signing.RSAPKCS1SHA256); err != nil {
			break
		}
		if len(loaded[signing.RSAPKCS1SHA256]) > 2*MinHeap/800 {
			t.Fatal("the heap does not end")
		}
	}
	if !strings.Contains(err.Error(), "set heap of the engine to 2MiB") {
		t.Errorf("the refusal does not say what to do: %v", err)
	}
	used, size := Heap()
	t.Logf("%d keys have %d of %d bytes: %v", len(loaded[signing.RSAPKCS1SHA256]), used, size, err)
	if size != MinHeap || used > size || len(loaded[signing.RSAPKCS1SHA256]) < 500 {
		t.Errorf("%d of %d bytes used", used, size)
	}
	for kind := range kinds { // nor by what is small
		if _, err := e.Load(enginetest.Key(t, kind).Material); err == nil {
			t.Errorf("%s: loaded into the room for operations", kind)
		}
	}
	for scheme, keys := range loaded {
		var ops []*engine.Op
		for i := range 32 * threads {
			ops = append(ops, &engine.Op{Key: keys[i%len(keys)], Task: signing.Task{Scheme: scheme, Data: make([]byte, 32)}})
		}
		if n := e.Submit(ops); n != len(ops) {
			t.Fatalf("%d of %d taken", n, len(ops))
		}
		for _, op := range c.Wait(t, len(ops)) {
			if op.Err != nil {
				t.Fatalf("%v: %v", scheme, op.Err)
			}
		}
	}
	now, _ := Heap()
	t.Logf("operations: %d bytes of it", now-used)
	for _, keys := range loaded {
		for _, k := range keys {
			k.Close()
		}
	}
	if err := load("RSA-2048", signing.RSAPKCS1SHA256); err != nil {
		t.Errorf("when all are gone: %v", err)
	}
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pno/crypto/cryptotest"
	"pno/crypto/engine/enginetest"
	"pno/crypto/mtls/mtlstest"
	"pno/crypto/signing"
)

// The primes of a key are in the memory of its worker, where the scan must find
// them, and nowhere else: not in that of the agent, not in any file.
func TestNoSecrets(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not root: the memory of processes that hide it cannot be read")
	}
	const kind = "RSA-2048"
	secrets := cryptotest.Secrets(t, kind)
	_, dir, kek := cryptotest.NewStore(t, kind)
	ca := mtlstest.NewAuthority(t)
	w := newProcess(t, ca, "a", dir, kek, cryptotest.AllowAll)
	a := startAgent(t, ca, w.addr)
	req := &signing.Request{Key: enginetest.Key(t, kind).ID, Scheme: signing.RSAPSSSHA256, Input: signing.Digest, Data: make([]byte, 32)}
	if got := a.sign(t, req); got != signing.OK {
		t.Fatalf("the agent answered %v", got)
	}
	if !cryptotest.InMemory(t, w.cmd.Process.Pid, secrets) {
		t.Error("the scan does not find the primes where they must be: in the worker")
	}
	if cryptotest.InMemory(t, a.cmd.Process.Pid, secrets) {
		t.Error("the agent has the key")
	}
	for _, path := range cryptotest.InFiles(t, secrets, dir, w.dir, filepath.Dir(a.sock)) {
		t.Errorf("%s holds a prime of the key", path)
	}
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", w.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	if _, rest, ok := strings.Cut(string(limits), "Max core file size"); !ok || !strings.HasPrefix(strings.TrimSpace(rest), "0 ") {
		t.Errorf("the worker may leave a core file:\n%s", limits)
	}
}

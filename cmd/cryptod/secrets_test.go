// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"crypto/rsa"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pno/crypto/cryptotest"
	"pno/crypto/engine/enginetest"
	"pno/crypto/mtls/mtlstest"
	"pno/crypto/signing"
)

// primes of the test key, as they may stand in memory: big and little endian.
func primes(t *testing.T, kind string) [][]byte {
	var out [][]byte
	for _, p := range enginetest.Key(t, kind).Signer.(*rsa.PrivateKey).Primes {
		big := p.Bytes()
		little := slices.Clone(big)
		slices.Reverse(little)
		out = append(out, big, little)
	}
	return out
}

// find looks for any of the secrets in the whole memory of a process.
func find(t *testing.T, pid int, secrets [][]byte) bool {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	found := false
	buf := make([]byte, 1<<20)
	for line := range strings.Lines(string(maps)) {
		var from, to int64
		var perm string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &perm); err != nil || !strings.HasPrefix(perm, "rw") {
			continue
		}
		const overlap = 512
		for at := from; at < to; at += int64(len(buf)) - overlap {
			n, err := mem.ReadAt(buf[:min(int64(len(buf)), to-at)], at)
			if err != nil && n == 0 {
				break // a guard page, or not there any more
			}
			found = found || slices.ContainsFunc(secrets, func(s []byte) bool { return bytes.Contains(buf[:n], s) })
		}
	}
	return found
}

// The primes of a key are in the memory of its worker, where the scan must find
// them, and nowhere else: not in that of the agent, not in any file.
func TestNoSecrets(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not root: the memory of processes that hide it cannot be read")
	}
	const kind = "RSA-2048"
	secrets := primes(t, kind)
	_, dir, kek := cryptotest.NewStore(t, kind)
	ca := mtlstest.NewAuthority(t)
	w := newProcess(t, ca, "a", dir, kek, cryptotest.AllowAll)
	a := startAgent(t, ca, w.addr)
	req := &signing.Request{Key: enginetest.Key(t, kind).ID, Scheme: signing.RSAPSSSHA256, Input: signing.Digest, Data: make([]byte, 32)}
	if got := a.sign(t, req); got != signing.OK {
		t.Fatalf("the agent answered %v", got)
	}
	if !find(t, w.cmd.Process.Pid, secrets) {
		t.Error("the scan does not find the primes where they must be: in the worker")
	}
	if find(t, a.cmd.Process.Pid, secrets) {
		t.Error("the agent has the key")
	}
	for _, root := range []string{dir, w.dir, filepath.Dir(a.sock)} {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			text, err := os.ReadFile(path)
			if slices.ContainsFunc(secrets, func(s []byte) bool { return bytes.Contains(text, s) }) {
				t.Errorf("%s holds a prime of the key", path)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", w.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	if _, rest, ok := strings.Cut(string(limits), "Max core file size"); !ok || !strings.HasPrefix(strings.TrimSpace(rest), "0 ") {
		t.Errorf("the worker may leave a core file:\n%s", limits)
	}
}

// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package keystore

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

const softHSM = "/usr/lib/softhsm/libsofthsm2.so"

// A KEK in a token: softhsm2 with a token of the test's own.
func TestToken(t *testing.T) {
	if _, err := os.Stat(softHSM); err != nil {
		t.Skip("no softhsm2: ", err)
	}
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	t.Setenv("SOFTHSM2_CONF", write("conf", "directories.tokendir = "+dir+"\nobjectstore.backend = file\nlog.level = ERROR\n"))
	pin, aes := write("pin", "1234\n"), write("aes", "0123456789abcdef0123456789abcdef")
	run := func(args ...string) {
		if out, err := exec.Command("softhsm2-util", args...).CombinedOutput(); err != nil {
			t.Fatalf("softhsm2-util %v: %v\n%s", args, err, out)
		}
	}
	run("--init-token", "--free", "--label", "pno", "--pin", "1234", "--so-pin", "1234")
	run("--import", aes, "--aes", "--token", "pno", "--label", "kek", "--id", "01", "--pin", "1234")

	spec := func(object, pin string) string {
		return fmt.Sprintf("pkcs11:module=%s;token=pno;object=%s;pin-file=%s", softHSM, object, pin)
	}
	kek, err := OpenKEK(spec("kek", pin))
	if err != nil {
		t.Fatal(err)
	}
	defer kek.Close()
	s := newStore(t, kek)
	e, err := s.Import(secretOf(t, "P-256"), Options{Name: "a"})
	if err != nil {
		t.Fatal(err)
	}
	key, err := s.Unseal(e)
	if err != nil {
		t.Fatal(err)
	}
	key.Close()
	e.file.WrappedDEK[20] ^= 1
	if _, err := s.Unseal(e); err == nil {
		t.Error("a damaged wrap opens")
	}
	if n, err := s.Rotate(newKEK(t)); err != nil || n != 1 {
		t.Errorf("rotate away from the token: %d, %v", n, err)
	}
	for name, bad := range map[string]string{"object": spec("none", pin), "token": fmt.Sprintf("pkcs11:module=%s;token=x;object=kek;pin-file=%s", softHSM, pin),
		"module": "pkcs11:module=/none.so;token=pno;object=kek;pin-file=" + pin} {
		if k, err := OpenKEK(bad); err == nil {
			k.Close()
			t.Errorf("%s: opened", name)
		}
	}
}

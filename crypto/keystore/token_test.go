// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package keystore

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

const softHSM = "/usr/lib/softhsm/libsofthsm2.so"

// hsm is a token of softhsm2 of this process's own, with an AES key in it: the
// library reads where its tokens are once in a process, however often a test runs.
var hsm = sync.OnceValues(func() (pin string, err error) {
	if _, err := os.Stat(softHSM); err != nil {
		return "", nil // there is no softhsm2
	}
	dir, err := os.MkdirTemp("", "pno-token-")
	if err != nil {
		return "", err
	}
	hsmDir = dir
	pin = filepath.Join(dir, "pin")
	for name, text := range map[string]string{
		"conf": "directories.tokendir = " + dir + "\nobjectstore.backend = file\nlog.level = ERROR\n",
		"pin":  "1234\n", "aes": "0123456789abcdef0123456789abcdef",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return "", err
		}
	}
	if err := os.Setenv("SOFTHSM2_CONF", filepath.Join(dir, "conf")); err != nil {
		return "", err
	}
	for _, args := range [][]string{
		{"--init-token", "--free", "--label", "pno", "--pin", "1234", "--so-pin", "1234"},
		{"--import", filepath.Join(dir, "aes"), "--aes", "--token", "pno", "--label", "kek", "--id", "01", "--pin", "1234"},
	} {
		if out, err := exec.Command("softhsm2-util", args...).CombinedOutput(); err != nil {
			return "", fmt.Errorf("softhsm2-util %v: %w\n%s", args, err, out)
		}
	}
	return pin, nil
})

var hsmDir string // of hsm, once it is made

func TestMain(m *testing.M) {
	code := m.Run()
	if hsmDir != "" {
		os.RemoveAll(hsmDir)
	}
	os.Exit(code)
}

// A KEK in a token.
func TestToken(t *testing.T) {
	pin, err := hsm()
	if err != nil {
		t.Fatal(err)
	}
	if pin == "" {
		t.Skip("no softhsm2")
	}
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

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// object is a body with known content.
type object struct {
	Name string // of the file, and of the path after the slash
	Size int64
	Sum  string // SHA-256, hexadecimal
	File string // where its bytes are
}

// The bodies that every transfer is checked with.
var sizes = []struct {
	name string
	size int64
}{{"1b", 1}, {"64b", 64}, {"1k", 1 << 10}, {"64k", 64 << 10}, {"1m", 1 << 20}, {"16m", 16 << 20}, {"100m", 100 << 20}}

// site is a directory with all bodies, made once.
type site struct {
	root    string
	objects map[string]object
}

var makeSite = sync.OnceValues(func() (*site, error) {
	s := &site{root: filepath.Join(os.Getenv(workEnv), "www"), objects: map[string]object{}}
	if err := os.Mkdir(s.root, 0o755); err != nil {
		return nil, err
	}
	for i, one := range sizes {
		o, err := writeObject(s.root, one.name, one.size, byte(i))
		if err != nil {
			return nil, err
		}
		s.objects[one.name] = o
	}
	return s, nil
})

// testSite returns the bodies, in a directory that a web server can serve.
func testSite(t testing.TB) *site {
	t.Helper()
	s, err := makeSite()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// pick returns bodies by name.
func (s *site) pick(names ...string) (out []object) {
	for _, n := range names {
		out = append(out, s.objects[n])
	}
	return out
}

// writeObject writes a file of pseudo-random bytes, the same in every run.
func writeObject(dir, name string, size int64, seed byte) (object, error) {
	o := object{Name: name, Size: size, File: filepath.Join(dir, name)}
	f, err := os.Create(o.File)
	if err != nil {
		return o, err
	}
	defer f.Close()
	h := sha256.New()
	src := rand.NewChaCha8([32]byte{seed})
	if _, err := io.CopyN(io.MultiWriter(f, h), src, size); err != nil {
		return o, err
	}
	o.Sum = hex.EncodeToString(h.Sum(nil))
	return o, f.Close()
}

func sumHex(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

// fileSum returns the hash of a file.
func fileSum(t testing.TB, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// binaryBlob is bytes that no text protocol passes by chance.
func binaryBlob(n int, seed byte) []byte {
	var b bytes.Buffer
	b.Grow(n)
	src := rand.NewChaCha8([32]byte{seed, 1})
	_, _ = io.CopyN(&b, src, int64(n))
	return b.Bytes()
}

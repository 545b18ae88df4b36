// SPDX-License-Identifier: Apache-2.0

package cryptotest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/pem"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pno/crypto/engine/enginetest"
)

// Secrets are the private numbers of a test key, as they may stand in memory: big
// and little endian.
func Secrets(t testing.TB, kind string) [][]byte {
	t.Helper()
	var numbers [][]byte
	switch key := enginetest.Key(t, kind).Signer.(type) {
	case *rsa.PrivateKey:
		numbers = [][]byte{key.Primes[0].Bytes(), key.Primes[1].Bytes(), key.D.Bytes(),
			key.Precomputed.Dp.Bytes(), key.Precomputed.Dq.Bytes(), key.Precomputed.Qinv.Bytes()}
	case *ecdsa.PrivateKey:
		d, err := key.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		numbers = [][]byte{d}
	case ed25519.PrivateKey:
		numbers = [][]byte{key.Seed()}
	}
	var out [][]byte
	for _, b := range numbers {
		little := slices.Clone(b)
		slices.Reverse(little)
		out = append(out, b, little)
	}
	return out
}

func holds(text []byte, secrets [][]byte) bool {
	return slices.ContainsFunc(secrets, func(s []byte) bool { return bytes.Contains(text, s) })
}

// inReader counts the secrets in everything that is read.
func inReader(r io.Reader, secrets [][]byte) (int, error) {
	const overlap = 512 // no secret is longer; none that begins there is counted yet
	buf := make([]byte, 1<<20)
	kept, found := 0, 0
	for {
		n, err := io.ReadFull(r, buf[kept:])
		last := err == io.EOF || err == io.ErrUnexpectedEOF
		if err != nil && !last {
			return found, err
		}
		for _, s := range secrets {
			have := buf[:kept+n]
			if !last { // what begins in the overlap is counted with the next part
				have = have[:len(have)-overlap+len(s)-1]
			}
			found += bytes.Count(have, s)
		}
		if last {
			return found, nil
		}
		kept = copy(buf, buf[len(buf)-overlap:])
	}
}

// InMemory looks for any of the secrets in all that a process can write. It
// needs root for processes that hide their memory.
func InMemory(t testing.TB, pid int, secrets [][]byte) bool {
	t.Helper()
	c := CopiesIn(t, pid, secrets)
	return c.Safe+c.Plain > 0
}

// Copies is how often secrets stand in a process's memory: in such that is
// locked and left out of core dumps, and in any other.
type Copies struct{ Safe, Plain int }

// CopiesIn counts them in all that a process can write. It needs root for
// processes that hide their memory.
func CopiesIn(t testing.TB, pid int, secrets [][]byte) Copies {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		t.Fatal(err)
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	read := 0
	var found Copies
	var from, to int64
	var perm string
	for line := range strings.Lines(string(maps)) {
		flags, end := strings.CutPrefix(line, "VmFlags:")
		if !end {
			var a, b int64
			var p string
			if _, err := fmt.Sscanf(line, "%x-%x %s", &a, &b, &p); err == nil && len(p) == 4 {
				from, to, perm = a, b, p
			}
			continue
		}
		if !strings.HasPrefix(perm, "rw") {
			continue
		}
		area := &memory{mem: mem, at: from, end: to}
		n, err := inReader(area, secrets)
		if err != nil {
			t.Fatal(err)
		}
		read += area.pages
		if strings.Contains(flags, " lo") && strings.Contains(flags, " dd") {
			found.Safe += n
		} else {
			found.Plain += n
		}
	}
	if read == 0 {
		t.Fatalf("nothing of process %d could be read", pid)
	}
	return found
}

// memory reads a mapping page by page: one that cannot be read, a guard page or
// one that is gone, is left out.
type memory struct {
	mem     *os.File
	at, end int64
	pages   int
}

func (m *memory) Read(b []byte) (int, error) {
	const page = 4096
	for m.at < m.end {
		n, err := m.mem.ReadAt(b[:min(int64(len(b)), m.end-m.at)], m.at)
		if n > 0 {
			m.at += int64(n)
			m.pages++
			return n, nil
		}
		if err == nil {
			return 0, io.ErrNoProgress
		}
		m.at += page
	}
	return 0, io.EOF
}

// InFiles returns the files below some folders that hold any of the secrets,
// plainly or inside of PEM blocks.
func InFiles(t testing.TB, secrets [][]byte, roots ...string) (hits []string) {
	t.Helper()
	for _, root := range roots {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			hit, err := inFile(path, secrets)
			if hit {
				hits = append(hits, path)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
	return hits
}

func inFile(path string, secrets [][]byte) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	if n, err := inReader(f, secrets); n > 0 || err != nil {
		return n > 0, err
	}
	const most = 1 << 20 // of a file with PEM blocks
	if info, err := f.Stat(); err != nil || info.Size() > most {
		return false, err
	}
	text, err := os.ReadFile(path)
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if holds(block.Bytes, secrets) {
			return true, nil
		}
	}
	return false, err
}

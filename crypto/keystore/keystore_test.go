// SPDX-License-Identifier: Apache-2.0

package keystore

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"pno/crypto/engine/enginetest"
	"pno/crypto/secmem"
)

func newKEK(t testing.TB) KEK {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kek")
	if err := NewKEKFile(path); err != nil {
		t.Fatal(err)
	}
	kek, err := OpenKEK("file:" + path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { kek.Close() })
	return kek
}

func secretOf(t testing.TB, kind string) Secret {
	t.Helper()
	buf, err := secmem.Move(bytes.Clone(enginetest.Key(t, kind).PKCS8))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(buf.Free)
	return Secret{buf}
}

// private is a folder that nobody else can write in, whatever the umask.
func private(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

func newStore(t testing.TB, kek KEK) *Store {
	t.Helper()
	s, err := Open(private(t), kek)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestStore(t *testing.T) {
	kek := newKEK(t)
	s := newStore(t, kek)
	for _, kind := range []string{"RSA-2048", "P-256", "Ed25519"} {
		e, err := s.Import(secretOf(t, kind), Options{Name: "key " + kind, TLS13Only: kind == "P-256"})
		if err != nil {
			t.Fatal(err)
		}
		if info, _ := os.Stat(e.Path); info.Mode().Perm() != 0o600 {
			t.Errorf("mode %v", info.Mode())
		}
		raw, _ := os.ReadFile(e.Path)
		if der := enginetest.Key(t, kind).PKCS8; bytes.Contains(raw, der[len(der)-32:]) {
			t.Error("the key is in the file in the clear")
		}
		if _, err := s.Import(secretOf(t, kind), Options{Name: "again"}); !errors.Is(err, ErrExists) {
			t.Errorf("second import: %v", err)
		}
	}
	all, err := s.List()
	if err != nil || len(all) != 3 || all[0].Name != "key Ed25519" || !all[1].TLS13Only {
		t.Fatalf("%v, %+v", err, all)
	}
	e, err := s.Find("key RSA-2048")
	if err != nil {
		t.Fatal(err)
	}
	key, err := s.Unseal(e)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(key.Bytes(), enginetest.Key(t, "RSA-2048").PKCS8) {
		t.Error("another key came out")
	}
	key.Close()
	if by, err := s.Find(e.ID.String()[:8]); err != nil || by.ID != e.ID {
		t.Errorf("by the beginning of its id: %v", err)
	}
	if err := s.Remove(e); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Find("key RSA-2048"); !errors.Is(err, ErrNotFound) {
		t.Errorf("after removal: %v", err)
	}
}

// A name means one key.
func TestNames(t *testing.T) {
	s := newStore(t, newKEK(t))
	first, err := s.Import(secretOf(t, "P-256"), Options{Name: "shop"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Import(secretOf(t, "Ed25519"), Options{Name: "shop"}); !errors.Is(err, ErrName) || !strings.Contains(err.Error(), first.ID.String()) {
		t.Errorf("a second key of the name: %v", err)
	}
	if _, err := s.Import(secretOf(t, "Ed25519"), Options{Name: first.ID.String()}); err == nil {
		t.Error("a name in the form of an id was taken")
	}
	// Stores may hold two from before, or from a copy.
	e, err := s.Import(secretOf(t, "Ed25519"), Options{Name: "other"})
	if err != nil {
		t.Fatal(err)
	}
	text, _ := os.ReadFile(e.Path)
	if err := os.WriteFile(e.Path, bytes.Replace(text, []byte(`"other"`), []byte(`"shop"`), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Find("shop"); err == nil || !strings.Contains(err.Error(), "give the id") {
		t.Errorf("found %v, %v", got, err)
	}
	if got, err := s.Find(e.ID.String()); err != nil || got.ID != e.ID {
		t.Errorf("by id: %v, %v", got, err)
	}
}

// A pipe with the name of a key file must not hold up the others.
func TestNoRegularFile(t *testing.T) {
	s := newStore(t, newKEK(t))
	if _, err := s.Import(secretOf(t, "P-256"), Options{Name: "shop"}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(s.dir, "pipe"+Suffix), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(s.dir, "folder"+Suffix), 0o700); err != nil {
		t.Fatal(err)
	}
	all, err := s.List()
	if len(all) != 1 || err == nil || strings.Count(err.Error(), "not a regular file") != 2 {
		t.Errorf("%d keys, %v", len(all), err)
	}
}

func TestRotate(t *testing.T) {
	before, after := newKEK(t), newKEK(t)
	s := newStore(t, before)
	for _, kind := range []string{"P-256", "Ed25519"} {
		if _, err := s.Import(secretOf(t, kind), Options{Name: kind}); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []int{2, 0} {
		if n, err := s.Rotate(after); err != nil || n != want {
			t.Fatalf("%d, %v; want %d", n, err, want)
		}
	}
	e, err := s.Find("P-256")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Unseal(e); err == nil || !strings.Contains(err.Error(), "this one is") {
		t.Errorf("the former KEK: %v", err)
	}
	key, err := (&Store{dir: s.dir, kek: after}).Unseal(e)
	if err != nil {
		t.Fatal(err)
	}
	key.Close()
}

// What the file says about a key is sealed with it.
func TestTampering(t *testing.T) {
	s := newStore(t, newKEK(t))
	e, err := s.Import(secretOf(t, "P-256"), Options{Name: "a", TLS13Only: true, Expires: time.Now().Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	good, _ := os.ReadFile(e.Path)
	for name, change := range map[string][2]string{
		"tls13_only":  {`"tls13_only": true`, `"tls13_only": false`},
		"name":        {`"name": "a"`, `"name": "b"`},
		"expiry":      {`"expires": "20`, `"expires": "21`},
		"ciphertext":  {`"sealed": "`, `"sealed": "AAAA`},
		"wrapped key": {`"wrapped_dek": "`, `"wrapped_dek": "AAAA`},
	} {
		bad := strings.Replace(string(good), change[0], change[1], 1)
		if bad == string(good) {
			t.Fatalf("%s: nothing to change in\n%s", name, good)
		}
		if err := os.WriteFile(e.Path, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := s.read(e.Path)
		if err != nil {
			continue
		}
		if key, err := s.Unseal(got); err == nil {
			key.Close()
			t.Errorf("%s: opened all the same", name)
		}
	}
}

func TestExpired(t *testing.T) {
	s := newStore(t, newKEK(t))
	e, err := s.Import(secretOf(t, "P-256"), Options{Name: "a", Expires: time.Now().Add(-time.Minute)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Unseal(e); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("got %v", err)
	}
}

func TestDecodeForms(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("no openssl to write key files with")
	}
	dir := t.TempDir()
	openssl := func(args ...string) string {
		t.Helper()
		out := filepath.Join(dir, "converted")
		if text, err := exec.Command("openssl", append(args, "-out", out)...).CombinedOutput(); err != nil {
			t.Fatalf("openssl %v: %v\n%s", args, err, text)
		}
		return out
	}
	for _, kind := range []string{"RSA-2048", "P-256", "Ed25519"} {
		der := enginetest.Key(t, kind).PKCS8
		plain := filepath.Join(dir, "plain")
		if err := os.WriteFile(plain, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		tests := []struct {
			name, pass string
			args       []string
		}{
			{"PKCS #8", "", []string{"pkcs8", "-topk8", "-nocrypt", "-in", plain}},
			{"DER", "", []string{"pkcs8", "-topk8", "-nocrypt", "-in", plain, "-outform", "DER"}},
			{"AES-256", "pass", []string{"pkcs8", "-topk8", "-in", plain, "-passout", "pass:pass", "-v2", "aes-256-cbc"}},
			{"AES-128, SHA-512", "pass", []string{"pkcs8", "-topk8", "-in", plain, "-passout", "pass:pass", "-v2", "aes-128-cbc", "-v2prf", "hmacWithSHA512"}},
			{"3DES, SHA-1", "pass", []string{"pkcs8", "-topk8", "-in", plain, "-passout", "pass:pass", "-v2", "des3", "-v2prf", "hmacWithSHA1"}},
			{"encrypted DER", "pass", []string{"pkcs8", "-topk8", "-in", plain, "-passout", "pass:pass", "-outform", "DER"}},
		}
		switch kind {
		case "RSA-2048":
			tests = append(tests, struct {
				name, pass string
				args       []string
			}{"PKCS #1", "", []string{"rsa", "-traditional", "-in", plain}})
		case "P-256":
			tests = append(tests, struct {
				name, pass string
				args       []string
			}{"SEC 1", "", []string{"ec", "-in", plain}})
		}
		for _, tt := range tests {
			t.Run(kind+", "+tt.name, func(t *testing.T) {
				data, err := os.ReadFile(openssl(tt.args...))
				if err != nil {
					t.Fatal(err)
				}
				key, err := Decode(data, []byte(tt.pass))
				if err != nil {
					t.Fatal(err)
				}
				defer key.Close()
				got, err := publicOf(key.Bytes())
				if err != nil {
					t.Fatal(err)
				}
				a, _ := x509.MarshalPKIXPublicKey(got)
				b, _ := x509.MarshalPKIXPublicKey(enginetest.Key(t, kind).Public)
				if !bytes.Equal(a, b) {
					t.Error("another key")
				}
				if tt.pass != "" {
					for _, wrong := range [][]byte{nil, []byte("wrong")} {
						if _, err := Decode(data, wrong); err == nil {
							t.Errorf("passphrase %q opens it", wrong)
						}
					}
				}
			})
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	small, err := enginetest.NewKey("RSA-1024")
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := asn1.Marshal(struct {
		Version int
		Key     []byte
		Curve   asn1.ObjectIdentifier `asn1:"tag:0,explicit"`
	}{1, bytes.Repeat([]byte{1}, 32), asn1.ObjectIdentifier{1, 3, 132, 0, 10}}) // secp256k1
	if err != nil {
		t.Fatal(err)
	}
	k256 := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: foreign})
	if _, err := Decode(k256, nil); err == nil || !strings.Contains(err.Error(), "ECDSA on P-256, P-384 or P-521") {
		t.Errorf("a key on a curve that TLS does not know: %v", err)
	}
	for name, data := range map[string][]byte{
		"empty": nil, "text": []byte("hello"), "certificate": []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
		"small RSA":    small.PKCS8,
		"old PEM":      []byte("-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nAAAA\n-----END RSA PRIVATE KEY-----\n"),
		"damaged":      enginetest.Key(t, "RSA-2048").PKCS8[:300],
		"damaged PEM1": []byte("-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n"),
	} {
		if key, err := Decode(data, nil); err == nil {
			key.Close()
			t.Errorf("%s: taken", name)
		}
	}
}

// Sealed or not, a folder that others may change is none for keys.
func TestFolder(t *testing.T) {
	dir := private(t)
	for mode, good := range map[os.FileMode]bool{0o700: true, 0o750: true, 0o770: false, 0o777: false, os.ModeSticky | 0o777: false} {
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		switch _, err := Open(dir, nil); {
		case good && err != nil:
			t.Errorf("mode %v: %v", mode, err)
		case !good && (err == nil || !strings.Contains(err.Error(), "others may write in it")):
			t.Errorf("mode %v: %v", mode, err)
		}
	}
	if _, err := Open(filepath.Join(dir, "none"), nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no folder: %v", err)
	}
}

// A name that rules take for every key means one by one only.
func TestNameStar(t *testing.T) {
	s := newStore(t, newKEK(t))
	if _, err := s.Import(secretOf(t, "P-256"), Options{Name: "*"}); err == nil || !strings.Contains(err.Error(), "every key") {
		t.Errorf("got %v", err)
	}
}

func TestKEKErrors(t *testing.T) {
	dir := t.TempDir()
	open := filepath.Join(dir, "open")
	short := filepath.Join(dir, "short")
	if err := errors.Join(os.WriteFile(open, make([]byte, 32), 0o644), os.WriteFile(short, []byte("abc"), 0o600)); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PNO_TEST_KEK", strings.Repeat("ab", 32))
	if kek, err := OpenKEK("env:PNO_TEST_KEK"); err != nil {
		t.Error(err)
	} else {
		kek.Close()
	}
	for spec, want := range map[string]string{
		"":                      "write file:/path",
		"vault:x":               "not a kind",
		"file:" + open:          "others may read",
		"file:" + short:         "want 32 bytes",
		"file:" + dir + "/none": "no such file",
		"env:PNO_NO_SUCH":       "want 32 bytes",
		"credential:../x":       "no such credential",
		"pkcs11:module=/x":      "names no token",
		"pkcs11:module=/x;y":    "name=value",
	} {
		if _, err := OpenKEK(spec); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", spec, err, want)
		}
	}
	if err := NewKEKFile(short); err == nil {
		t.Error("a KEK was overwritten")
	}
}

func FuzzParse(f *testing.F) {
	s := newStore(f, newKEK(f))
	e, err := s.Import(secretOf(f, "P-256"), Options{Name: "a"})
	if err != nil {
		f.Fatal(err)
	}
	good, err := os.ReadFile(e.Path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := parse(data)
		if err != nil {
			return
		}
		if key, err := s.Unseal(got); err == nil {
			defer key.Close()
			if got.ID != e.ID || got.TLS13Only != e.TLS13Only || got.Name != e.Name {
				t.Fatal("opened under another description")
			}
		}
	})
}

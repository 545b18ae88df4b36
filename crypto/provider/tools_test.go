// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pno/crypto/provider/agenttest"
)

// Every type of key through the openssl command: look, sign, verify, request
// and issue certificates. What is signed remotely is verified with the
// certificate alone, by OpenSSL's own code or by Go's.
func TestOpenSSLCommand(t *testing.T) {
	for _, kind := range agenttest.Kinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			k := agenttest.NewKey(t, kind)
			a := agenttest.New(t, k).Start()
			cert, ref, both := k.Files(t)
			dir := t.TempDir()
			msg, sig, pub := filepath.Join(dir, "msg"), filepath.Join(dir, "sig"), filepath.Join(dir, "pub.pem")
			if err := os.WriteFile(msg, []byte(strings.Repeat("to be signed\n", 100)), 0o600); err != nil {
				t.Fatal(err)
			}

			must(t, a, "pkey", "-in", both, "-pubout", "-out", pub)
			if got, want := must(t, a, "pkey", "-pubin", "-in", pub), must(t, a, "x509", "-in", cert, "-noout", "-pubkey"); got != want {
				t.Errorf("public half\n%swant\n%s", got, want)
			}
			if out, err := openssl(t, a, "pkey", "-in", ref); err == nil {
				t.Errorf("the private half can be written:\n%s", out)
			}
			if kind == "ed25519" {
				must(t, a, "pkeyutl", "-sign", "-rawin", "-inkey", ref, "-in", msg, "-out", sig)
				must(t, a, "pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", pub, "-in", msg, "-sigfile", sig)
				must(t, a, "pkeyutl", "-verify", "-rawin", "-inkey", ref, "-in", msg, "-sigfile", sig)
			} else {
				dgst(t, a, kind, ref, pub, msg, sig)
			}
			request(t, a, ref, filepath.Join(dir, "req.pem"))
			issue(t, a, cert, ref, dir)
		})
	}
}

func dgst(t *testing.T, a *agenttest.Agent, kind, ref, pub, msg, sig string) {
	paddings := [][]string{nil}
	if strings.HasPrefix(kind, "rsa") {
		pss := []string{"-sigopt", "rsa_padding_mode:pss"}
		paddings = append(paddings, append(pss, "-sigopt", "rsa_pss_saltlen:digest"), append(pss, "-sigopt", "rsa_pss_saltlen:-1"), pss)
	}
	for _, hash := range []string{"-sha256", "-sha384", "-sha512"} {
		for _, padding := range paddings {
			args := append([]string{"dgst", hash}, padding...)
			must(t, a, append(args, "-sign", ref, "-out", sig, msg)...)
			must(t, a, append(args, "-verify", pub, "-signature", sig, msg)...)
			must(t, a, append(args, "-prverify", ref, "-signature", sig, msg)...)
			if out, err := openssl(t, a, append(args, "-prverify", ref, "-signature", sig, ref)...); err == nil {
				t.Errorf("a signature of another message verifies: %s", out)
			}
		}
	}
	for _, bad := range [][]string{{"-sha1"}, {"-sha256", "-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:max"}} {
		if len(bad) > 1 && len(paddings) == 1 {
			continue
		}
		before := a.Ops.Load()
		if out, err := openssl(t, a, append(append([]string{"dgst"}, bad...), "-sign", ref, "-out", sig, msg)...); err == nil || a.Ops.Load() != before {
			t.Errorf("%v is not refused at once: %s", bad, out)
		}
	}
}

func request(t *testing.T, a *agenttest.Agent, ref, req string) {
	must(t, a, "req", "-new", "-key", ref, "-subj", "/CN=by request", "-out", req)
	if out := must(t, a, "req", "-in", req, "-noout", "-verify"); !strings.Contains(out, "OK") {
		t.Errorf("request: %s", out)
	}
	data, err := os.ReadFile(req)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(data)
	parsed, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if err := parsed.CheckSignature(); err != nil {
		t.Errorf("request: %v", err)
	}
}

func issue(t *testing.T, a *agenttest.Agent, cert, ref, dir string) {
	req, out := filepath.Join(dir, "req.pem"), filepath.Join(dir, "issued.pem")
	must(t, a, "x509", "-req", "-in", req, "-CA", cert, "-CAkey", ref, "-days", "1", "-set_serial", "7", "-out", out)
	if text := must(t, a, "verify", "-CAfile", cert, out); !strings.Contains(text, "OK") {
		t.Errorf("issued certificate: %s", text)
	}
}

// What is signed with RSA goes by scheme: there is no raw operation.
func TestNoRawRSA(t *testing.T) {
	k := agenttest.NewKey(t, "rsa2048")
	a := agenttest.New(t, k).Start()
	_, ref, _ := k.Files(t)
	block := filepath.Join(t.TempDir(), "block")
	if err := os.WriteFile(block, make([]byte, 256), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"pkeyutl", "-sign", "-inkey", ref, "-in", block, "-pkeyopt", "rsa_padding_mode:none"},
		{"pkeyutl", "-sign", "-inkey", ref, "-in", block},
		{"pkeyutl", "-decrypt", "-inkey", ref, "-in", block, "-pkeyopt", "rsa_padding_mode:none"},
		{"pkeyutl", "-decrypt", "-inkey", ref, "-in", block},
		{"pkeyutl", "-decrypt", "-inkey", ref, "-in", block, "-pkeyopt", "rsa_padding_mode:oaep"},
	} {
		if out, err := openssl(t, a, args...); err == nil {
			t.Errorf("openssl %v works: %q", args, out)
		}
	}
	if n := a.Ops.Load(); n != 0 {
		t.Errorf("%d operations went to the agent", n)
	}
}

// References that are not right are refused with a reason.
func TestBadReference(t *testing.T) {
	k := agenttest.NewKey(t, "p256")
	a := agenttest.New(t, k).Start()
	block, _ := pem.Decode(k.Ref())
	for name, spoil := range map[string]func([]byte) []byte{
		"empty":    func([]byte) []byte { return nil },
		"cut":      func(b []byte) []byte { return b[:len(b)-1] },
		"longer":   func(b []byte) []byte { return append(b, 0) },
		"magic":    func(b []byte) []byte { b[0]++; return b },
		"version":  func(b []byte) []byte { b[4]++; return b },
		"flags":    func(b []byte) []byte { b[6] = 8; return b },
		"id":       func(b []byte) []byte { b[8]++; return b },
		"length":   func(b []byte) []byte { b[40]++; return b },
		"reserved": func(b []byte) []byte { b[44] = 1; return b },
		"key":      func(b []byte) []byte { b[60]++; return b },
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "ref.pem")
			data := pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: spoil(append([]byte(nil), block.Bytes...))})
			if err := os.WriteFile(file, data, 0o600); err != nil {
				t.Fatal(err)
			}
			out, err := openssl(t, a, "pkey", "-in", file, "-pubout")
			if err == nil {
				t.Fatalf("read:\n%s", out)
			}
			t.Logf("%s", out)
		})
	}
}

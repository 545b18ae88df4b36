// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"pno/crypto/keyref"
	"pno/crypto/signing"
)

// The Go structs must be the C structs: a C program prints sizes, offsets and
// constants of protocol.h, and the same text is made from the Go side.
func TestHeaderMatches(t *testing.T) {
	cc, err := exec.LookPath("cc")
	if err != nil {
		t.Skip("no C compiler to read protocol.h with")
	}
	var c, want strings.Builder
	c.WriteString("#include <stdio.h>\n#include \"protocol.h\"\nint main(void) {\n")
	line := func(expr string, value uint64) {
		fmt.Fprintf(&c, "printf(\"%%s %%llu\\n\", \"%s\", (unsigned long long)(%s));\n", expr, expr)
		fmt.Fprintf(&want, "%s %d\n", expr, value)
	}
	describe := func(name string, v any, size int) {
		typ := reflect.TypeOf(v)
		line("sizeof(struct "+name+")", uint64(typ.Size()))
		if binary.Size(v) != int(typ.Size()) || size != int(typ.Size()) {
			t.Errorf("%s: %d bytes packed, %d in memory, %d in the codec", name, binary.Size(v), typ.Size(), size)
		}
		for _, f := range reflect.VisibleFields(typ) {
			if tag := f.Tag.Get("c"); tag != "" && len(f.Index) == 1 {
				line("offsetof(struct "+name+", "+tag+")", uint64(f.Offset))
			}
		}
	}
	describe("pno_agent_msg", Header{}, headerSize)
	describe("pno_agent_hello", Hello{}, helloSize)
	describe("pno_agent_welcome", Welcome{}, welcomeSize)
	describe("pno_agent_refused", Refused{}, refusedSize)
	describe("pno_agent_op", OpHead{}, opSize)
	describe("pno_agent_result", ResultHead{}, resultSize)
	describe("pno_key_ref", keyref.Head{}, 48)
	for name, value := range map[string]uint64{
		"AGENT_MAGIC": Magic, "AGENT_VERSION": Version, "AGENT_PACKET": MaxPacket, "AGENT_NAME": NameLen, "AGENT_TEXT": TextLen,
		"AGENT_GRACE_MS": GraceMillis, "AGENT_INPUT": signing.MaxInput, "AGENT_OUTPUT": signing.MaxOutput,
		"AGENT_HELLO": uint64(TypeHello), "AGENT_WELCOME": uint64(TypeWelcome), "AGENT_REFUSED": uint64(TypeRefused),
		"AGENT_OP": uint64(TypeOp), "AGENT_RESULT": uint64(TypeResult), "KEY_ID_LEN": uint64(len(signing.KeyID{})),
		"INPUT_DIGEST": uint64(signing.Digest), "INPUT_MESSAGE": uint64(signing.Message),
		"INPUT_TLS13_SERVER": uint64(signing.TLS13Server), "INPUT_TLS13_CLIENT": uint64(signing.TLS13Client),
		"INPUT_TLS12_PREMASTER": uint64(signing.TLS12Premaster),
		"RSA_PKCS1_SHA256":      uint64(signing.RSAPKCS1SHA256), "RSA_PKCS1_SHA384": uint64(signing.RSAPKCS1SHA384),
		"RSA_PKCS1_SHA512": uint64(signing.RSAPKCS1SHA512), "RSA_PSS_RSAE_SHA256": uint64(signing.RSAPSSSHA256),
		"RSA_PSS_RSAE_SHA384": uint64(signing.RSAPSSSHA384), "RSA_PSS_RSAE_SHA512": uint64(signing.RSAPSSSHA512),
		"ECDSA_P256_SHA256": uint64(signing.ECDSAP256SHA256), "ECDSA_P384_SHA384": uint64(signing.ECDSAP384SHA384),
		"ECDSA_P521_SHA512": uint64(signing.ECDSAP521SHA512), "ED25519": uint64(signing.Ed25519),
	} {
		line("PNO_"+name, value)
	}
	for _, s := range signing.Statuses {
		line("PNO_STATUS_"+strings.ToUpper(s.String()), uint64(s))
	}
	c.WriteString("puts(PNO_AGENT_DEFAULT);\nputs(PNO_KEY_PEM_LABEL);\nreturn 0;\n}\n")
	want.WriteString(DefaultPath + "\n" + keyref.Label + "\n")

	dir := t.TempDir()
	src, bin := filepath.Join(dir, "a.c"), filepath.Join(dir, "a")
	if err := os.WriteFile(src, []byte(c.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(cc, "-std=c11", "-Wall", "-Wextra", "-Werror", "-I.", "-o", bin, src).CombinedOutput(); err != nil {
		t.Fatalf("compile: %v\n%s", err, out)
	}
	out, err := exec.Command(bin).Output()
	if err != nil {
		t.Fatal(err)
	}
	got, exp := strings.Split(string(out), "\n"), strings.Split(want.String(), "\n")
	for i := range exp {
		if i >= len(got) || got[i] != exp[i] {
			t.Fatalf("C says %q, Go says %q", got[min(i, len(got)-1)], exp[i])
		}
	}
}

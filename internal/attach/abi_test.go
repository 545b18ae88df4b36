// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// The Go structs must be the C structs: a C program prints sizes, offsets and
// constants of shim/attach.h, and the same text is made from the Go side.
func TestHeaderMatches(t *testing.T) {
	cc, err := exec.LookPath("cc")
	if err != nil {
		t.Skip("no C compiler to read shim/attach.h with")
	}
	structs := map[string]Message{
		"hello": &Hello{}, "welcome": &Welcome{}, "refused": &Refused{}, "channel_open": &ChannelOpen{},
		"channel": &Channel{}, "forked": &Forked{}, "register_socket": &RegisterSocket{},
		"unregister_socket": &UnregisterSocket{}, "lookup_socket": &LookupSocket{}, "socket": &Socket{},
		"ready": &Ready{}, "ack": &Ack{},
	}
	var c, want strings.Builder
	c.WriteString("#include <stdio.h>\n#include \"attach.h\"\nint main(void) {\n")
	line := func(expr string, value uint64) {
		fmt.Fprintf(&c, "printf(\"%%s %%llu\\n\", \"%s\", (unsigned long long)(%s));\n", expr, expr)
		fmt.Fprintf(&want, "%s %d\n", expr, value)
	}
	describe := func(name string, v any) {
		typ := reflect.TypeOf(v).Elem()
		line("sizeof(struct "+name+")", uint64(typ.Size()))
		if binary.Size(v) != int(typ.Size()) {
			t.Errorf("%s: %d bytes packed, %d in memory: a hole", name, binary.Size(v), typ.Size())
		}
		for _, f := range reflect.VisibleFields(typ) {
			if tag := f.Tag.Get("c"); tag != "" && len(f.Index) == 1 {
				line("offsetof(struct "+name+", "+tag+")", uint64(f.Offset))
			} else if tag != "" {
				line("offsetof(struct "+name+", "+tag+")", uint64(typ.Field(f.Index[0]).Offset+f.Offset))
			}
		}
	}
	describe("pno_msg", &Header{})
	describe("pno_rule", &Rule{})
	for name, m := range structs {
		describe("pno_msg_"+name, m)
		line("PNO_MSG_"+strings.ToUpper(name), uint64(typeOf(m)))
	}
	for name, value := range map[string]uint64{
		"ATTACH_MAGIC": Magic, "ATTACH_VERSION": Version, "MAX_RULES": MaxRules, "NAME_LEN": NameLen,
		"TEXT_LEN": TextLen, "TOKEN_LEN": TokenLen, "POLICY_LEN": PolicyLen, "HELLO_TOKEN": HelloToken, "HELLO_PROBE": HelloProbe,
		"ACTION_OFFLOAD": 1, "ACTION_KERNEL": 2, "ACTION_REFUSE": 3,
		"RULE_LISTEN": RuleListen, "RULE_CONNECT": RuleConnect,
		"SOCK_LISTENER": SockListener, "SOCK_CONN": SockConn, "SOCK_BOUND": SockBound,
	} {
		line("PNO_"+name, value)
	}
	c.WriteString("puts(PNO_ATTACH_DEFAULT);\nreturn 0;\n}\n")
	want.WriteString(DefaultPath + "\n")

	dir := t.TempDir()
	src, bin := filepath.Join(dir, "a.c"), filepath.Join(dir, "a")
	if err := os.WriteFile(src, []byte(c.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(cc, "-std=c11", "-Wall", "-Wextra", "-Werror", "-I../../shim", "-o", bin, src).CombinedOutput(); err != nil {
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

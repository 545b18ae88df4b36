// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const root = "../.."

func TestPageIsCurrent(t *testing.T) {
	want, err := page(root)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(root, "docs/compat.md"))
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("docs/compat.md is not what the tables say (%v): make gen", err)
	}
}

func matches(t *testing.T, re string, files ...string) (names []string) {
	t.Helper()
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(re).FindAllSubmatch(b, -1) {
			names = append(names, string(m[1]))
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// What the sources export, calls.def lists; what libc's table has, too.
func TestEveryCallHasARow(t *testing.T) {
	src := filepath.Join(root, "shim/src")
	files, err := filepath.Glob(filepath.Join(src, "*.c"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	listed := matches(t, `(?m)^PNO_ENTRY\((\w+),`, filepath.Join(src, "calls.def"))
	exported := matches(t, `(?m)^PNO_EXPORT (?:__attribute__\(\(.*?\)\)\) )?[^(;]*?\*?(\w+)\(`, files...)
	// Functions that one macro makes.
	exported = slices.DeleteFunc(exported, func(s string) bool { return s == "name" })
	exported = append(exported, matches(t, `(?m)^SIGNAL_TWIN\((\w+)`, files...)...)
	for _, name := range exported {
		if !slices.Contains(listed, name) {
			t.Errorf("%s is exported, and not in calls.def: nobody could call it", name)
		}
	}
	for _, name := range matches(t, `(?m)^PNO_CALL\([^,]+, (\w+),`, filepath.Join(src, "syscalls.def")) {
		if !slices.Contains(listed, name) {
			t.Errorf("%s is taken over (syscalls.def), and not in calls.def", name)
		}
	}
}

// A handled call that no program of the tests makes would be a promise only.
// Twins, whose notes say what they are as, need none of their own.
func TestHandledCallsAreMade(t *testing.T) {
	var tests []string
	for _, glob := range []string{"shim/conformance/topic/*.c", "shim/test/*_test.c"} {
		files, err := filepath.Glob(filepath.Join(root, glob))
		if err != nil || len(files) == 0 {
			t.Fatal(files, err)
		}
		tests = append(tests, files...)
	}
	made := matches(t, `\b([A-Za-z_]\w*)\(`, tests...)
	rows, err := os.ReadFile(filepath.Join(root, "shim/src/calls.def"))
	if err != nil {
		t.Fatal(err)
	}
	calls, err := tables[0].parse(rows)
	if err != nil {
		t.Fatal(err)
	}
	// Where execv, execl and execle end, which topic processes calls.
	made = append(made, "execve")
	for _, c := range calls {
		if c.fate == "handled" && !slices.Contains(made, c.name) && !strings.HasPrefix(c.note, "as ") {
			t.Errorf("no test calls %s", c.name)
		}
	}
}

func TestParse(t *testing.T) {
	for _, c := range []struct {
		name, text, want string
		table            int
	}{
		{"entry", `PNO_ENTRY(read, "one | two")`, `{read handled one \| two}`, 0},
		{"several words", `PNO_DENIED(send with MSG_OOB, EOPNOTSUPP, "why, then")`, "{send with MSG_OOB refused, EOPNOTSUPP why, then}", 0},
		{"comment", "/* PNO_ENTRY(x,\n * \"\") */\nPNO_PASSED(y, \"\")", "{y passed }", 0},
		{"option", `PNO_OPTION(SOL_SOCKET, SO_X, ASK, "")`, "{SO_X handled }", 1},
		{"kept", `PNO_OPTION(SOL_SOCKET, SO_X, KEEP, "kept; a hint")`, "{SO_X kept a hint}", 1},
		{"refused", `PNO_REFUSED(IPPROTO_TCP, TCP_X, EPERM, "no")`, "{TCP_X refused, EPERM no}", 1},
		{"datagram", `PNO_UDP_OPTION(IPPROTO_IP, IP_X, KEEP, "kept; x")`, "{IP_X kept x}", 2},
		{"no note", `PNO_UDP_OPTION(IPPROTO_IP, IP_X, WANT)`, "udp_options.def:1: ", 2},
		{"no note", `PNO_OPTION(SOL_SOCKET, SO_X, ASK)`, "options.def:1: ", 1},
		{"bad way", `PNO_OPTION(SOL_SOCKET, SO_X, PERHAPS, "")`, "options.def:1: ", 1},
		{"two lines", "PNO_ENTRY(read,\n\"\")", "calls.def:1: ", 0},
		{"unknown", `PNO_OTHER(read, "")`, "calls.def:1: ", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			rows, err := tables[c.table].parse([]byte(c.text))
			switch {
			case err != nil:
				if !strings.HasPrefix(err.Error(), c.want) {
					t.Errorf("%v, want %s", err, c.want)
				}
			case len(rows) != 1 || "{"+rows[0].name+" "+rows[0].fate+" "+rows[0].note+"}" != c.want:
				t.Errorf("%v, want %s", rows, c.want)
			}
		})
	}
}

// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

type inner struct {
	Port uint16 `yaml:"port"`
	line int
}

func (i *inner) SetLine(n int) { i.line = n }

func (i *inner) Validate() error {
	if i.Port == 1 {
		return At("port", errors.New("port 1 is taken"))
	}
	return nil
}

type sample struct {
	Name   string            `yaml:"name"`
	Count  int               `yaml:"count"`
	On     bool              `yaml:"on"`
	Ratio  float64           `yaml:"ratio"`
	Buffer Size              `yaml:"buffer"`
	Wait   Duration          `yaml:"wait"`
	Listen netip.AddrPort    `yaml:"listen"`
	Inner  inner             `yaml:"inner"`
	Ptr    *inner            `yaml:"ptr"`
	List   []inner           `yaml:"list"`
	Words  []string          `yaml:"words"`
	Labels map[string]string `yaml:"labels"`
	hidden int
}

func TestParseGood(t *testing.T) {
	in := `# a comment
name: "x y"
count: -3
on: true
ratio: 0.5
buffer: 4MiB   # with a unit
wait: 1m30s
listen: "127.0.0.1:80"
inner: {port: 7}
ptr:
  port: 8
list:
  - port: 9
  - {port: 10}
words: [a, "b"]
labels:
  k: v
`
	got := sample{hidden: 1}
	if err := Parse("f.yaml", []byte(in), &got); err != nil {
		t.Fatal(err)
	}
	want := sample{
		Name: "x y", Count: -3, On: true, Ratio: 0.5, Buffer: 4 << 20, Wait: Duration(90 * time.Second),
		Listen: netip.MustParseAddrPort("127.0.0.1:80"), Inner: inner{7, 9}, Ptr: &inner{8, 11},
		List: []inner{{9, 13}, {10, 14}}, Words: []string{"a", "b"}, Labels: map[string]string{"k": "v"}, hidden: 1,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestParseErrors(t *testing.T) {
	tests := []struct{ name, in, want string }{
		{"unknown key", "naem: x", `f:1:1: unknown key "naem"; did you mean "name"?`},
		{"unknown key, no likeness", "inner:\n  zzzzzz: 1", `f:2:3: unknown key "zzzzzz"; known keys: port`},
		{"untagged field", "hidden: 1", `f:1:1: unknown key "hidden"; known keys: buffer, count, inner, labels, list, listen, name, on, ptr, ratio, wait, words`},
		{"repeated key", "name: a\nname: b", `f:2:1: key "name" is given twice`},
		{"no value", "on: true\nname:\n", `f:2:1: key "name" has no value; give one or remove the key to keep the default`},
		{"number for text", "name: 12", `f:1:7: want text, found a number; put it in quotes if it is meant as text`},
		{"text for number", "count: many", `f:1:8: want a whole number, found "many"`},
		{"too large", "inner:\n  port: 65536", `f:2:9: want a whole number from 0 to 65535, found "65536"`},
		{"not a bool", "on: yes", `f:1:5: want true or false, found "yes"`},
		{"list for text", "name: [a]", `f:1:7: want a single value, found a list`},
		{"text for keys", "inner: x", `f:1:8: want keys and values (port), found text`},
		{"keys for list", "list: {port: 1}", `f:1:7: want a list ("- …" or […]), found keys and values`},
		{"size", "buffer: 3MB", `f:1:9: "3MB" is not a size; write bytes or a whole number with KiB, MiB or GiB`},
		{"size overflow", "buffer: 99999999999GiB", `f:1:9: "99999999999GiB" is not a size; write bytes or a whole number with KiB, MiB or GiB`},
		{"duration", "wait: 5", `f:1:7: "5" is not a duration; write a number with a unit, as 50us, 20ms or 10s`},
		{"validation at a key", "list:\n  - port: 2\n  - port: 1", `f:3:11: port 1 is taken`},
		{"alias", "name: &a x\nwords: [*a]", "f:1:7: anchors, aliases and tags are not supported; write the value out\nf:2:9: anchors, aliases and tags are not supported; write the value out"},
		{"two documents", "name: a\n---\nname: b", `f:3:1: second YAML document; keep one, without "---" between parts`},
		{"several at once", "naem: x\ncount: y", "f:1:1: unknown key \"naem\"; did you mean \"name\"?\nf:2:8: want a whole number, found \"y\""},
		{"deep", strings.Repeat("[", 40), `f:1:1: nested deeper than 32 levels`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var s sample
			err := Parse("f", []byte(tt.in), &s)
			if err == nil || err.Error() != tt.want {
				t.Errorf("got  %v\nwant %s", err, tt.want)
			}
		})
	}
}

func TestSyntaxErrorHasLine(t *testing.T) {
	var s sample
	err := Parse("f", []byte("name: a\nlist: [\n"), &s)
	var e *Error
	if !errors.As(err, &e) || e.Line < 2 || !strings.Contains(err.Error(), "YAML syntax: ") {
		t.Errorf("got %v", err)
	}
}

func TestEmptyKeepsDefaults(t *testing.T) {
	for _, in := range []string{"", "# nothing\n", "---\n"} {
		s := sample{Name: "kept"}
		if err := Parse("f", []byte(in), &s); err != nil || s.Name != "kept" {
			t.Errorf("%q: %v, %+v", in, err, s)
		}
	}
}

func TestLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.yaml")
	if err := os.WriteFile(path, []byte("count: x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var s sample
	if err := Load(path, &s); err == nil || !strings.HasPrefix(err.Error(), path+":1:8: ") {
		t.Errorf("got %v", err)
	}
	if err := Load(path+".none", &s); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func TestSizeString(t *testing.T) {
	for want, s := range map[string]Size{"0": 0, "100": 100, "64KiB": 64 << 10, "3MiB": 3 << 20, "2GiB": 2 << 30} {
		if s.String() != want {
			t.Errorf("%d: got %s, want %s", uint64(s), s, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"name: a", "list: [{port: 1}]", "inner:\n  port: 3\n", "a: &b c\nd: *b", "? x\n: y", "- - - -", "\t", "words:\n- |\n  x", "<<: {}"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var s sample
		if err := Parse("f", data, &s); err != nil && err.Error() == "" {
			t.Error("an error without a text")
		}
	})
}

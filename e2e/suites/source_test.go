// SPDX-License-Identifier: Apache-2.0

package suites

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Suites that are in no binary package come with the sources of Debian's
// packages. Each of their cases is a command of its own (testdata/each.py).

// aCase is a line of each.py's list.
type aCase struct {
	Name string            `json:"name"`
	Argv []string          `json:"argv"`
	Dir  string            `json:"dir"`
	Env  map[string]string `json:"env,omitempty"`
}

// source is where the source of a Debian package is, which is fetched once.
func source(t *testing.T, name string) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(cache, "pno", "suites")
	if out, err := exec.Command("../../scripts/source.sh", name, dir).CombinedOutput(); err != nil {
		t.Fatalf("source of %s: %v\n%s", name, err, out)
	}
	found, err := filepath.Glob(filepath.Join(dir, name+"-*/"))
	if err != nil || len(found) != 1 {
		t.Fatalf("source of %s: %v, found %q", name, err, found)
	}
	return found[0]
}

// libuv builds the tests of libuv; the program runs each of them by name.
func libuv(t *testing.T) (list []aCase) {
	t.Helper()
	dir := source(t, "libuv1")
	build := filepath.Join(dir, "pno-build")
	for _, argv := range [][]string{
		{"cmake", "-S", dir, "-B", build, "-DCMAKE_BUILD_TYPE=Release", "-DLIBUV_BUILD_TESTS=ON"},
		{"make", "-C", build, "-j2", "uv_run_tests"},
	} {
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, tail(string(out), 2000))
		}
	}
	env := map[string]string{"UV_RUN_AS_ROOT": "1"}
	program := filepath.Join(build, "uv_run_tests")
	cmd := exec.Command(program, "--list")
	cmd.Env = append(os.Environ(), "UV_RUN_AS_ROOT=1")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s --list: %v", program, err)
	}
	for name := range strings.FieldsSeq(string(out)) {
		list = append(list, aCase{name, []string{program, name}, dir, env})
	}
	return list
}

// regTests are HAProxy's own cases for varnishtest.
func regTests(t *testing.T) (list []aCase) {
	t.Helper()
	dir := source(t, "haproxy")
	files, err := filepath.Glob(filepath.Join(dir, "reg-tests", "*", "*.vtc"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no test cases in %s: %v", dir, err)
	}
	for _, file := range files {
		name, err := filepath.Rel(filepath.Join(dir, "reg-tests"), file)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, aCase{name, []string{"varnishtest", "-t", "40", file}, dir, map[string]string{
			"HAPROXY_PROGRAM": "/usr/sbin/haproxy",
			// As run-regtests.sh has it, but for the room that threads need: 50
			// MB are too little for them natively, too.
			"HAPROXY_ARGS": "-dM -de -m 200",
			"TESTDIR":      filepath.Dir(file),
		}})
	}
	return list
}

// node are the tests of Node.js that have to do with sockets.
func node(t *testing.T) (list []aCase) {
	t.Helper()
	dir := filepath.Join(source(t, "nodejs"), "test")
	files, err := filepath.Glob(filepath.Join(dir, "parallel", "test-*.*js"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no tests in %s: %v", dir, err)
	}
	about := regexp.MustCompile(`^test-(net|http|https|http2|tls|dgram|cluster|tcp|socket|dns|pipe)-`)
	flags := regexp.MustCompile(`(?m)^// Flags: (.*)$`)
	for _, file := range files {
		name := filepath.Base(file)
		if !about.MatchString(name) {
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		argv := []string{"/usr/bin/node"}
		if m := flags.FindSubmatch(text); m != nil {
			argv = append(argv, strings.Fields(string(m[1]))...)
		}
		list = append(list, aCase{name, append(argv, file), dir, map[string]string{"NODE_SKIP_FLAG_CHECK": "1"}})
	}
	return list
}

// writeList is the list as each.py reads it.
func writeList(t *testing.T, path string, list []aCase) {
	t.Helper()
	var b strings.Builder
	for _, c := range list {
		line, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		b.Write(line)
		b.WriteByte('\n')
	}
	if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}

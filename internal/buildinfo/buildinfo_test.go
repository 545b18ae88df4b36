// SPDX-License-Identifier: Apache-2.0

package buildinfo

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
)

func TestFromBuildInfo(t *testing.T) {
	setting := func(kv ...string) (out []debug.BuildSetting) {
		for i := 0; i < len(kv); i += 2 {
			out = append(out, debug.BuildSetting{Key: kv[i], Value: kv[i+1]})
		}
		return out
	}
	tests := []struct {
		name     string
		module   string
		settings []debug.BuildSetting
		want     string
	}{
		{"nothing recorded", "", nil, "devel"},
		{"go run", "(devel)", nil, "devel"},
		{"released module", "v1.2.3", setting("vcs.revision", "abc"), "v1.2.3"},
		{"revision", "(devel)", setting("vcs.revision", "0123456789abcdef0123"), "0123456789ab"},
		{"short revision", "", setting("vcs.revision", "0123"), "0123"},
		{"modified", "", setting("vcs.revision", "0123456789abcdef", "vcs.modified", "true"), "0123456789ab-dirty"},
		{"modified before revision", "", setting("vcs.modified", "true", "vcs.revision", "0123"), "0123-dirty"},
		{"not modified", "", setting("vcs.revision", "0123", "vcs.modified", "false"), "0123"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			info := &debug.BuildInfo{Main: debug.Module{Version: tt.module}, Settings: tt.settings}
			if got := fromBuildInfo(info); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestLong(t *testing.T) {
	got := Long()
	for _, part := range []string{Version(), runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH} {
		if !strings.Contains(got, part) {
			t.Errorf("%q does not name %q", got, part)
		}
	}
}

// A renamed variable would make the linker drop the version without a word.
func TestLinkerFlag(t *testing.T) {
	dir := t.TempDir()
	main := filepath.Join(dir, "main.go")
	src := "package main\n\nimport (\n\t\"fmt\"\n\n\t\"pno/internal/buildinfo\"\n)\n\nfunc main() { fmt.Print(buildinfo.Version()) }\n"
	if err := os.WriteFile(main, []byte(src), 0o644); err != nil {
		t.Fatal(err)
	}
	// The file lies outside the module, so it is named as an overlay inside it:
	// an internal package may only be imported from below its parent.
	overlay := filepath.Join(dir, "overlay.json")
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	virtual := filepath.Join(wd, "linkertest", "main.go")
	if err := os.WriteFile(overlay, []byte(`{"Replace":{"`+virtual+`":"`+main+`"}}`), 0o644); err != nil {
		t.Fatal(err)
	}
	makefile, err := os.ReadFile(filepath.Join("..", "..", "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	const flag = "-X pno/internal/buildinfo.version="
	if !strings.Contains(string(makefile), flag) {
		t.Fatalf("the Makefile does not pass %q", flag)
	}
	out, err := exec.Command("go", "run", "-overlay", overlay, "-ldflags", flag+"v9.9-test", "./linkertest").CombinedOutput()
	if err != nil {
		t.Fatalf("go run: %v\n%s", err, out)
	}
	if got := string(out); got != "v9.9-test" {
		t.Errorf("got %q, want %q", got, "v9.9-test")
	}
}

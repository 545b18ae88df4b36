// SPDX-License-Identifier: Apache-2.0

// Package buildinfo says which build this is: the version that every command
// prints, reports over the admin API, and compares with its peer's. It holds no
// state after initialisation; any goroutine may call it.
package buildinfo

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

// version is set by the linker: make passes the output of git describe.
var version string

// Version names the build: what the linker was given; else what the Go tool
// recorded (a module version, or a revision); else "devel".
func Version() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "devel"
	}
	return fromBuildInfo(info)
}

// Long is Version with the Go release and the platform, for `--version` and for
// the head of recorded measurements.
func Long() string {
	return fmt.Sprintf("%s (%s, %s/%s)", Version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

func fromBuildInfo(info *debug.BuildInfo) string {
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	var revision, suffix string
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			revision = s.Value
		case s.Key == "vcs.modified" && s.Value == "true":
			suffix = "-dirty"
		}
	}
	if revision == "" {
		return "devel"
	}
	return revision[:min(len(revision), 12)] + suffix
}

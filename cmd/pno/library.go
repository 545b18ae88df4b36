// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

const libraryName = "libpno.so"

// findLibrary returns the absolute path of the shim: $PNO_LIB, else beside
// this program, else where `make install` puts it.
func findLibrary() (string, error) {
	if path := os.Getenv("PNO_LIB"); path != "" {
		path, err := filepath.Abs(path)
		if err != nil {
			return "", fmt.Errorf("find the shim: %w", err)
		}
		if _, err := os.Stat(path); err != nil {
			return "", fmt.Errorf("find the shim named by PNO_LIB: %w", err)
		}
		return path, nil
	}
	exe, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find the shim: %w", err)
	}
	if real, err := filepath.EvalSymlinks(exe); err == nil {
		exe = real
	}
	dir := filepath.Dir(exe)
	for _, path := range []string{
		filepath.Join(dir, libraryName),
		filepath.Join(filepath.Dir(dir), "lib", "pno", libraryName),
	} {
		if _, err := os.Stat(path); err == nil {
			return path, nil
		} else if !errors.Is(err, os.ErrNotExist) {
			return "", fmt.Errorf("find the shim: %w", err)
		}
	}
	return "", fmt.Errorf("%s is not in %s: run `make shim`, or set PNO_LIB", libraryName, dir)
}

// preload puts the shim in front of what the environment already preloads.
func preload(library string) string {
	if old := os.Getenv("LD_PRELOAD"); old != "" {
		return library + " " + old
	}
	return library
}

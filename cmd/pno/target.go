// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// checkTarget tells why a preloaded library would have no effect in the program
// at path: the loader would not load it, or the program's system calls do not
// pass through libc. nil means that it will work, as far as the file tells.
func checkTarget(path string) error {
	if err := checkPrivilege(path); err != nil {
		return err
	}
	interpreter, err := scriptInterpreter(path)
	if err != nil {
		return err
	}
	if interpreter != "" {
		if err := checkPrivilege(interpreter); err != nil {
			return fmt.Errorf("interpreter %w", err)
		}
		if err := checkELF(interpreter); err != nil {
			return fmt.Errorf("interpreter %w", err)
		}
		return nil
	}
	return checkELF(path)
}

// checkPrivilege finds what makes the kernel set AT_SECURE, under which the
// loader ignores LD_PRELOAD.
func checkPrivilege(path string) error {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	switch {
	case st.Mode&unix.S_ISUID != 0 && int(st.Uid) != os.Geteuid():
		return fmt.Errorf("%s is set-user-ID: the loader ignores LD_PRELOAD there; run it as user %d, or a copy without the bit", path, st.Uid)
	case st.Mode&unix.S_ISGID != 0 && int(st.Gid) != os.Getegid():
		return fmt.Errorf("%s is set-group-ID: the loader ignores LD_PRELOAD there; run it as group %d, or a copy without the bit", path, st.Gid)
	}
	if n, err := unix.Getxattr(path, "security.capability", nil); err == nil && n > 0 && os.Geteuid() != 0 {
		return fmt.Errorf("%s has file capabilities: the loader ignores LD_PRELOAD there; run it as root, or remove them (setcap -r)", path)
	}
	return nil
}

// scriptInterpreter returns the program of a "#!" line, empty if there is none.
func scriptInterpreter(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	line, err := bufio.NewReader(io.LimitReader(f, 256)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	rest, ok := strings.CutPrefix(line, "#!")
	words := strings.Fields(rest)
	if !ok || len(words) == 0 {
		return "", nil
	}
	if filepath.Base(words[0]) == "env" && len(words) > 1 && !strings.HasPrefix(words[1], "-") {
		if real, err := exec.LookPath(words[1]); err == nil {
			return real, nil
		}
	}
	return words[0], nil
}

var machines = map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}

func checkELF(path string) error {
	f, err := elf.Open(path)
	var bad *elf.FormatError
	if errors.As(err, &bad) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%s is neither a program nor a script with a #! line", path)
	}
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // only read
	if want := machines[runtime.GOARCH]; f.Machine != want || f.Class != elf.ELFCLASS64 {
		return fmt.Errorf("%s is a %s program of %s, libpno.so is for %s", path, f.Class, f.Machine, want)
	}
	if f.Section(".go.buildinfo") != nil {
		return fmt.Errorf("%s is a Go program: its system calls do not pass through libc, so its sockets cannot be offloaded", path)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return nil
		}
	}
	return fmt.Errorf("%s is statically linked: nothing can be preloaded into it; use a dynamically linked build", path)
}

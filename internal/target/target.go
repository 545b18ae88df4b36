// SPDX-License-Identifier: Apache-2.0

// Package target tells whether the preloaded shim can work in a program, and
// if not, why. It reads files only, holds no state, and any goroutine may call.
package target

import (
	"bufio"
	"bytes"
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

// Reason is why the shim has no effect in a program, as it is counted.
type Reason string

const (
	Static     Reason = "static"     // nothing can be preloaded into it
	Go         Reason = "go"         // its system calls do not pass through libc
	Privileged Reason = "privileged" // the loader ignores LD_PRELOAD
	Machine    Reason = "machine"    // the shim is for another machine
	NotLoaded  Reason = "not_loaded" // the loader should have loaded it
	Raw        Reason = "raw"        // the shim is there, and was passed by
)

// Advice says what to do about it.
func (r Reason) Advice() string {
	switch r {
	case Static:
		return "use a dynamically linked build, or, in Go, package pno/shim"
	case Go:
		return "let it import package pno/shim"
	case Privileged:
		return "run it as its owner, or without the set-user-ID bit or file capabilities"
	case Machine:
		return "use a build for this machine"
	case NotLoaded:
		return "look for what its loader said about LD_PRELOAD"
	}
	return "it makes system calls without libc (io_uring, say), or got sockets from elsewhere: let the policy leave them to the kernel, or change it"
}

// Error is what Check finds.
type Error struct {
	Reason Reason // empty: it is no program at all
	text   string
}

func (e *Error) Error() string { return e.text }

func because(r Reason, format string, args ...any) error {
	return &Error{r, fmt.Sprintf(format, args...)}
}

// Check tells why the shim would have no effect in the program at path, as an
// *Error, or why that cannot be told. nil means that it will work, as far as
// the file tells. A Go program is fine if it has the shim's client.
func Check(path string) error {
	if err := checkPrivilege(path); err != nil {
		return err
	}
	interpreter, err := scriptInterpreter(path)
	if err != nil {
		return err
	}
	if interpreter != "" {
		if err = checkPrivilege(interpreter); err == nil {
			err = checkELF(interpreter)
		}
		var e *Error
		if errors.As(err, &e) {
			return because(e.Reason, "interpreter %s", e.text)
		}
		return err
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
		return because(Privileged, "%s is set-user-ID: the loader ignores LD_PRELOAD there; run it as user %d, or a copy without the bit", path, st.Uid)
	case st.Mode&unix.S_ISGID != 0 && int(st.Gid) != os.Getegid():
		return because(Privileged, "%s is set-group-ID: the loader ignores LD_PRELOAD there; run it as group %d, or a copy without the bit", path, st.Gid)
	}
	if n, err := unix.Getxattr(path, "security.capability", nil); err == nil && n > 0 && os.Geteuid() != 0 {
		return because(Privileged, "%s has file capabilities: the loader ignores LD_PRELOAD there; run it as root, or remove them (setcap -r)", path)
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
		return because("", "%s is neither a program nor a script with a #! line", path)
	}
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // only read
	if s := f.Section(".go.buildinfo"); s != nil {
		if hasClient(f) {
			return nil
		}
		return because(Go, "%s is a Go program: its system calls do not pass through libc, so its sockets cannot be offloaded unless it imports package pno/shim", path)
	}
	if want := machines[runtime.GOARCH]; f.Machine != want || f.Class != elf.ELFCLASS64 {
		return because(Machine, "%s is a %s program of %s, libpno.so is for %s", path, f.Class, f.Machine, want)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return nil
		}
	}
	return because(Static, "%s is statically linked: nothing can be preloaded into it; use a dynamically linked build", path)
}

// IsGo tells whether a program is written in Go, with the client or without.
func IsGo(path string) bool {
	f, err := elf.Open(path)
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	return f.Section(".go.buildinfo") != nil
}

// hasClient tells whether a Go program links the shim's client: the table of
// functions, which no stripping removes, has their names.
func hasClient(f *elf.File) bool {
	s := f.Section(".gopclntab")
	if s == nil {
		s = f.Section(".data.rel.ro.gopclntab")
	}
	if s == nil || s.Size > 1<<28 {
		return false
	}
	table, err := s.Data()
	return err == nil && bytes.Contains(table, []byte("pno/shim.Listen\x00")) || bytes.Contains(table, []byte("pno/shim.(*Dialer).DialContext\x00"))
}

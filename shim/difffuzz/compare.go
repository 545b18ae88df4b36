// SPDX-License-Identifier: Apache-2.0

package difffuzz

import (
	"fmt"
	"strings"
	"sync"
)

// A Pair plays programs on the kernel and under the shim.
type Pair struct{ Kernel, Shim *Player }

// A Result is what came of one program.
type Result struct {
	Program      Program
	Kernel, Shim string // transcripts
	KernelPlayed bool   // the kernel's side is as the model foretold
}

// Differs tells whether the transcripts do.
func (r Result) Differs() bool { return r.Kernel != r.Shim || !r.KernelPlayed }

// String shows both transcripts side by side, behind the program.
func (r Result) String() string {
	return fmt.Sprintf("program:\n%s\nkernel and shim:\n%s", r.Program, sideBySide(r.Kernel, r.Shim))
}

// Play plays a program's legal calls on both sides at once.
func (p Pair) Play(prog Program) (Result, error) {
	legal, lines := prog.Legal()
	r := Result{Program: legal}
	var wg sync.WaitGroup
	var kernelErr, shimErr error
	wg.Go(func() { r.Kernel, kernelErr = p.Kernel.Play(lines) })
	wg.Go(func() { r.Shim, shimErr = p.Shim.Play(lines) })
	wg.Wait()
	r.KernelPlayed = !strings.Contains(r.Kernel, "did not come") && !strings.Contains(r.Kernel, "HUNG") &&
		!strings.Contains(r.Kernel, "the player")
	if kernelErr != nil {
		return r, kernelErr
	}
	return r, shimErr
}

// Signature names the first difference without its numbers, so that the same
// bug is not reported by every program that meets it.
func (r Result) Signature() string {
	for line := range strings.Lines(sideBySide(r.Kernel, r.Shim)) {
		if x, ok := strings.CutPrefix(line, "≠"); ok {
			left, right, _ := strings.Cut(x, " | ")
			return shape(left) + " | " + shape(right)
		}
	}
	return "the kernel's side was not foretold"
}

// shape is the name of a call and the words of its result.
func shape(line string) string {
	line = strings.TrimPrefix(strings.TrimPrefix(strings.TrimSpace(line), "child: "), "thread: ")
	call, result, _ := strings.Cut(line, " -> ")
	name, _, _ := strings.Cut(call, " ")
	return name + " " + strings.Map(func(c rune) rune {
		if c >= '0' && c <= '9' {
			return -1
		}
		return c
	}, result)
}

// sideBySide marks the lines that differ.
func sideBySide(a, b string) string {
	as, bs := strings.Split(strings.TrimSpace(a), "\n"), strings.Split(strings.TrimSpace(b), "\n")
	var out strings.Builder
	for len(as) > 0 || len(bs) > 0 {
		x, y := first(as), first(bs)
		switch {
		case x == y:
			fmt.Fprintf(&out, "  %s\n", x)
		// A line about what did not come has no counterpart.
		case strings.HasPrefix(y, "await") && !strings.HasPrefix(x, "await"):
			fmt.Fprintf(&out, "≠ %-56s | %s\n", "", y)
			bs = bs[1:]
			continue
		default:
			fmt.Fprintf(&out, "≠ %-56s | %s\n", x, y)
		}
		as, bs = rest(as), rest(bs)
	}
	return out.String()
}

func first(s []string) string {
	if len(s) == 0 {
		return ""
	}
	return s[0]
}

func rest(s []string) []string {
	if len(s) == 0 {
		return nil
	}
	return s[1:]
}

// Confirm plays a program again: it differs if it does so twice in five times.
func (p Pair) Confirm(prog Program) (Result, bool, error) {
	differed := 0
	var last Result
	for range 5 {
		r, err := p.Play(prog)
		if err != nil {
			return r, false, err
		}
		if r.Differs() {
			last = r
			if differed++; differed == 2 {
				return last, true, nil
			}
		}
	}
	return last, false, nil
}

// Minimise takes away calls for as long as the transcripts still differ: large
// pieces first, then single calls.
func (p Pair) Minimise(r Result) (Result, error) {
	for size := max(len(r.Program)/2, 1); ; {
		smaller, err := p.without(r, size)
		if err != nil {
			return r, err
		}
		switch {
		case len(smaller.Program) < len(r.Program):
			r = smaller
			size = min(size, max(len(r.Program)/2, 1))
		case size == 1:
			return r, nil
		default:
			size /= 2
		}
	}
}

// without tries to leave out each piece of a size once.
func (p Pair) without(r Result, size int) (Result, error) {
	for at := len(r.Program) - size; at >= 0; at -= size {
		if at+size > len(r.Program) {
			continue
		}
		var less Program
		less = append(less, r.Program[:at]...)
		less = append(less, r.Program[at+size:]...)
		shorter, err := p.Play(less)
		if err != nil {
			return r, err
		}
		// Another difference than the model's own fault, if it is not that.
		if shorter.Differs() && shorter.KernelPlayed == r.KernelPlayed {
			if again, err := p.Play(less); err == nil && again.Differs() && again.KernelPlayed == r.KernelPlayed {
				r = again
			}
		}
	}
	return r, nil
}

// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pno/internal/attach"
)

// The helper is this test binary as another process: a program that attaches,
// or the child of a fork, which has its parent's connection as descriptor 3. It
// does the words of PNO_TEST_STEPS in order, then waits for the end of stdin.
const (
	helperPath  = "PNO_TEST_HELPER"
	helperSteps = "PNO_TEST_STEPS"
)

func TestHelper(t *testing.T) {
	if os.Getenv(helperPath) == "" {
		t.Skip("only as a child of other tests")
	}
	b := &bench{listen: os.Getenv(helperPath)}
	var c *client
	for step := range strings.FieldsSeq(os.Getenv(helperSteps)) {
		name, arg, _ := strings.Cut(step, "=")
		switch name {
		case "attach":
			h := hello("helper")
			if arg != "" {
				h.Flags = attach.HelloToken
				h.Token = tokenOf(arg)
			}
			c = b.attachAs(t, h)
			fmt.Printf("attached %d\n", c.w.Session)
		case "forked":
			parentConn(t, 3).forked(arg, os.Getpid())
			unix.Close(3)
			fmt.Println("forked")
		case "lookup":
			m := &attach.LookupSocket{}
			_, _ = fmt.Sscan(arg, &m.Cookie)
			fmt.Printf("lookup %s\n", lookupText(c.ask(m)))
		case "unregister":
			m := &attach.UnregisterSocket{}
			_, _ = fmt.Sscan(arg, &m.Cookie)
			c.ask(m)
			fmt.Println("unregistered")
		case "ready":
			c.ask(&attach.Ready{})
			fmt.Println("ready")
		}
	}
	_, _ = io.ReadAll(os.Stdin)
}

func lookupText(p *attach.Packet) string {
	if s, ok := p.Msg.(*attach.Socket); ok {
		return fmt.Sprintf("socket %x %x", s.Handle[0], s.Handle[1])
	}
	return describe(p.Msg)
}

// tokenOf makes a fork token from a short word.
func tokenOf(word string) (t [attach.TokenLen]byte) {
	copy(t[:], word)
	return t
}

func tokenHex(word string) string {
	t := tokenOf(word)
	return hex.EncodeToString(t[:])
}

// parentConn wraps an inherited descriptor.
func parentConn(t *testing.T, fd int) *client {
	t.Helper()
	f := os.NewFile(uintptr(fd), "parent")
	c, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &client{t: t, c: attach.NewConn(c.(*net.UnixConn))}
}

func (c *client) forked(token string, pid int) {
	c.t.Helper()
	if err := c.c.Send(&attach.Forked{Token: tokenOf(token), PID: int32(pid)}, 0); err != nil {
		c.t.Fatal(err)
	}
}

// process is a running helper.
type helperProcess struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.Closer
	out *bufio.Scanner
}

// start runs a helper. With a parent, it inherits that client's connection.
func (b *bench) start(parent *client, steps string) *helperProcess {
	b.t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestHelper$")
	cmd.Env = append(os.Environ(), helperPath+"="+b.listen, helperSteps+"="+steps)
	cmd.Stderr = os.Stderr
	if parent != nil {
		f, err := parent.c.File()
		if err != nil {
			b.t.Fatal(err)
		}
		defer f.Close()
		cmd.ExtraFiles = []*os.File{f}
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		b.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	h := &helperProcess{b.t, cmd, in, bufio.NewScanner(out)}
	b.t.Cleanup(h.kill)
	return h
}

func (h *helperProcess) kill() {
	_ = h.cmd.Process.Kill()
	_ = h.cmd.Wait()
	h.in.Close()
}

// says returns the rest of the next line that begins with a word.
func (h *helperProcess) says(word string) string {
	h.t.Helper()
	timer := time.AfterFunc(10*time.Second, func() { _ = h.cmd.Process.Kill() })
	defer timer.Stop()
	for h.out.Scan() {
		if rest, ok := strings.CutPrefix(h.out.Text(), word); ok {
			return strings.TrimSpace(rest)
		}
	}
	h.t.Fatalf("the helper did not say %q", word)
	return ""
}

func (h *helperProcess) session() (id uint64) {
	h.t.Helper()
	if _, err := fmt.Sscan(h.says("attached"), &id); err != nil {
		h.t.Fatal(err)
	}
	return id
}

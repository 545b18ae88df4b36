// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// TestSocketCalls runs one program twice, with kernel sockets and under the
// shim, and expects the same words from both: errno, events, results.
func TestSocketCalls(t *testing.T) {
	t.Parallel() // it waits more than it works
	native := probe(newBareLab(t, modeKernel))
	if mode(*modeFlag) == modeKernel {
		t.Logf("transcript:\n%s", native)
		if strings.Contains(native, "ended by") {
			t.Error("a case was not completed")
		}
		return
	}
	offloaded := probe(newLab(t))
	want, got := sections(native), sections(offloaded)
	for _, name := range want.names {
		t.Run(name, func(t *testing.T) {
			if want.text[name] != got.text[name] {
				t.Errorf("kernel and offload differ:\n%s", sideBySide(want.text[name], got.text[name]))
			}
		})
	}
}

func probe(l *lab) string {
	l.t.Helper()
	l.scripted()
	out, err := l.runApp("probe", 60*time.Second, script(l, "probe.py", servedAddr, backendAddr)...)
	if err != nil {
		l.t.Errorf("%s: the probe ended with %v", l.mode, err)
	}
	return out
}

// scripted starts the scripted server in the back end, on port 7000.
func (l *lab) scripted() *scriptedServer {
	l.t.Helper()
	s := &scriptedServer{l: l, ends: map[string]string{}}
	ln, err := l.backend.Listen("tcp", backendAddr+":7000")
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { ln.Close() })
	go s.serve(ln)
	return s
}

type transcript struct {
	names []string
	text  map[string]string
}

// sections cuts a transcript by its headings, which are not indented.
func sections(s string) transcript {
	tr := transcript{text: map[string]string{}}
	name := ""
	for line := range strings.Lines(s) {
		if !strings.HasPrefix(line, " ") {
			name = strings.TrimSpace(line)
			tr.names = append(tr.names, name)
			continue
		}
		tr.text[name] += line
	}
	return tr
}

func sideBySide(a, b string) string {
	as, bs := strings.Split(a, "\n"), strings.Split(b, "\n")
	var out strings.Builder
	for i := range max(len(as), len(bs)) {
		x, y := "", ""
		if i < len(as) {
			x = as[i]
		}
		if i < len(bs) {
			y = bs[i]
		}
		mark := " "
		if x != y {
			mark = "≠"
		}
		fmt.Fprintf(&out, "%s %-60s | %s\n", mark, x, y)
	}
	return out.String()
}

// scriptedServer does what the first line of each connection says. It is the
// peer whose view of a close cannot be had from the inside.
type scriptedServer struct {
	l     *lab
	tally atomic.Int64 // bytes that came before an orderly end

	mu   sync.Mutex
	ends map[string]string
}

func (s *scriptedServer) serve(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		go s.handle(c.(*net.TCPConn))
	}
}

func (s *scriptedServer) handle(c *net.TCPConn) {
	defer c.Close()
	r := bufio.NewReader(c)
	line, err := r.ReadString('\n')
	if err != nil {
		return
	}
	word, arg, _ := strings.Cut(strings.TrimSpace(line), " ")
	switch word {
	case "echo":
		_, _ = io.Copy(c, r)
	case "silent":
		time.Sleep(20 * time.Second)
	case "slowly":
		n, _ := strconv.Atoi(arg)
		for i := range n {
			fmt.Fprint(c, i%10)
			time.Sleep(5 * time.Millisecond)
		}
		_, _ = io.Copy(io.Discard, r)
	case "finish":
		_ = c.CloseWrite()
		_, _ = io.Copy(io.Discard, r)
	case "count":
		n, _ := io.Copy(io.Discard, r)
		fmt.Fprint(c, n)
	case "tally":
		n, err := io.Copy(io.Discard, r)
		if err == nil {
			s.tally.Add(n)
		}
	case "reset":
		_ = c.SetLinger(0)
	case "reset-later":
		time.Sleep(100 * time.Millisecond)
		_ = c.SetLinger(0)
	case "data-then-reset":
		fmt.Fprint(c, "last words")
		time.Sleep(50 * time.Millisecond)
		_ = c.SetLinger(0)
	case "GET": // of an HTTP proxy
		_ = c.SetLinger(0)
	case "close-unread":
		_, _ = r.Peek(1)
		time.Sleep(50 * time.Millisecond) // much more has come then
	case "watch":
		s.watchEnd(c, r, arg)
	case "report":
		n, _ := strconv.Atoi(arg)
		poll(30*time.Second, func() bool { return s.ended() >= n })
		s.report(c)
	case "try":
		d, err := s.l.backend.DialContext(s.l.t.Context(), "tcp", net.JoinHostPort(servedAddr, arg))
		if err == nil {
			d.Close()
		}
		fmt.Fprint(c, err == nil)
	case "await":
		d, err := s.l.backend.DialContext(s.l.t.Context(), "tcp", net.JoinHostPort(servedAddr, arg))
		if err == nil {
			_ = d.SetDeadline(time.Now().Add(20 * time.Second))
			_, err = d.Read(make([]byte, 1))
			d.Close()
		}
		fmt.Fprint(c, errors.Is(err, syscall.ECONNRESET))
	case "dial-later":
		go s.dialLater(net.JoinHostPort(servedAddr, arg))
	case "dial":
		port, how, _ := strings.Cut(arg, " ")
		s.dialBack(net.JoinHostPort(servedAddr, port), how)
	}
}

// watchEnd records what arrived and how the connection ended.
func (s *scriptedServer) watchEnd(c *net.TCPConn, r *bufio.Reader, name string) {
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
	text := ""
	for {
		line, err := r.ReadString('\n')
		if n, ok := strings.CutPrefix(strings.TrimSpace(line), "send "); ok {
			count, _ := strconv.Atoi(n)
			_, _ = c.Write(make([]byte, count))
		} else {
			text += line
		}
		if err == nil {
			continue
		}
		end := err.Error()
		switch {
		case errors.Is(err, io.EOF):
			end = "end of stream"
		case errors.Is(err, syscall.ECONNRESET):
			end = "reset"
		}
		s.mu.Lock()
		s.ends[name] = fmt.Sprintf("%q then %s", text, end)
		s.mu.Unlock()
		return
	}
}

func (s *scriptedServer) ended() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.ends)
}

func (s *scriptedServer) report(w io.Writer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(s.ends)) {
		fmt.Fprintf(w, "%s: %s\n", name, s.ends[name])
	}
}

// dialBack connects to the program under test.
func (s *scriptedServer) dialBack(addr, how string) {
	c, err := s.l.backend.DialContext(s.l.t.Context(), "tcp", addr)
	if err != nil {
		return
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if how == "reset" {
		_ = c.(*net.TCPConn).SetLinger(0)
		return
	}
	fmt.Fprint(c, "hello\n")
	_, _ = io.ReadFull(c, make([]byte, 2))
}

// dialLater connects and lets its first word wait.
func (s *scriptedServer) dialLater(addr string) {
	c, err := s.l.backend.DialContext(s.l.t.Context(), "tcp", addr)
	if err != nil {
		return
	}
	defer c.Close()
	time.Sleep(500 * time.Millisecond)
	fmt.Fprint(c, "hello\n")
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	_, _ = io.Copy(io.Discard, c)
}

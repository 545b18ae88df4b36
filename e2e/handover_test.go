// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// TestHandover passes connections with unread data in them to other processes,
// which have them when the sender has long closed its descriptor: by a message,
// as standard input of a new program in three ways.
func TestHandover(t *testing.T) {
	l := simLab(t)
	p := l.sim("sim", spawnOptions{}, []string{"--publish", published + "=198.18.0.2:7000"},
		script(l, "handover.py", "serve")...)
	if !poll(30*time.Second, func() bool { return strings.Contains(p.logText(), "ready") }) {
		t.Fatal("the server does not come up")
	}
	for _, tt := range []struct{ how, name string }{
		{"message", "message"}, {"inetd", "stdin"}, {"spawn", "stdin"}, {"exec", "stdin"},
	} {
		for _, size := range []int{5, 1 << 20} {
			t.Run(fmt.Sprintf("%s %d", tt.how, size), func(t *testing.T) {
				body := bytes.Repeat([]byte("abcdefghijklmno\n"), size/16+1)[:size]
				got, err := l.exchange(published, tt.how+"\n", body)
				want := append([]byte(fmt.Sprintf("%s %d 198.18.0.1\n", tt.name, size)), body...)
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("%d bytes %.40q, %v; want %d", len(got), got, err, len(want))
				}
			})
		}
	}
	t.Run("sed", func(t *testing.T) {
		got, err := l.exchange(published, "sed\n", bytes.Repeat([]byte("foo\n"), 10000))
		if want := bytes.Repeat([]byte("f00\n"), 10000); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes %.40q, %v; want %d", len(got), got, err, len(want))
		}
	})
}

// exchange sends a line and a body, in two pieces, and returns all that comes.
func (l *lab) exchange(addr, line string, body []byte) (got []byte, err error) {
	var c net.Conn
	l.client.Do(func() { c, err = net.DialTimeout("tcp", addr, 20*time.Second) })
	if err != nil {
		return nil, err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	half := len(body) / 2
	if _, err = c.Write(append([]byte(line), body[:half]...)); err != nil {
		return nil, err
	}
	time.Sleep(20 * time.Millisecond) // the first half is there before it is passed on
	if _, err = c.Write(body[half:]); err != nil {
		return nil, err
	}
	if err = c.(*net.TCPConn).CloseWrite(); err != nil {
		return nil, err
	}
	return io.ReadAll(c)
}

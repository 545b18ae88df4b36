// SPDX-License-Identifier: Apache-2.0

package dpu_test

import (
	"io"
	"syscall"
	"testing"
	"time"
)

// What TCP_CORK keeps back goes out after a while, again and again; and on a
// connection that has the option from its listener.
func TestCork(t *testing.T) {
	r := newRig(t, rigOptions{})
	h := newHost(t, r.agent, testLayout(1))
	l := h.listen(0, dpuAddr+":80")
	if errno := l.setOpt(syscall.IPPROTO_TCP, syscall.TCP_CORK, 1); errno != 0 {
		t.Fatalf("cork the listener: errno %d", errno)
	}
	c := r.remote.dial(t, dpuAddr+":80")
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
	s := l.accept()
	got := make([]byte, 5)
	for _, text := range []string{"first", "again", "third"} {
		begin := time.Now()
		if err := s.write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, got); err != nil || string(got) != text {
			t.Fatalf("remote read %q, %v; want %q", got, err, text)
		}
		if d := time.Since(begin); d < 100*time.Millisecond {
			t.Errorf("%q came after %v: nothing has kept it back", text, d)
		}
	}
	if err := s.write([]byte("freed")); err != nil {
		t.Fatal(err)
	}
	if errno := s.setOpt(syscall.IPPROTO_TCP, syscall.TCP_CORK, 0); errno != 0 {
		t.Fatalf("uncork: errno %d", errno)
	}
	if _, err := io.ReadFull(c, got); err != nil || string(got) != "freed" {
		t.Fatalf("remote read %q, %v", got, err)
	}
	if err := s.write([]byte("kept!")); err != nil { // and what is due later finds it closed
		t.Fatal(err)
	}
	s.close(0)
	if _, err := io.ReadFull(c, got); err != nil || string(got) != "kept!" {
		t.Fatalf("remote read %q, %v", got, err)
	}
}

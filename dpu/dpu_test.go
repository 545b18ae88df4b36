// SPDX-License-Identifier: Apache-2.0

package dpu_test

import (
	"io"
	"net"
	"testing"
	"time"
)

func TestListenAcceptEcho(t *testing.T) {
	r := newRig(t, rigOptions{})
	h := newHost(t, r.agent, testLayout(1))
	l := h.listen(0, dpuAddr+":80")
	c := r.remote.dial(t, dpuAddr+":80")
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	s := l.accept()
	b, err := s.readN(5)
	if err != nil || string(b) != "hello" {
		t.Fatalf("read %q, %v", b, err)
	}
	if err := s.write([]byte("world")); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 5)
	if _, err := io.ReadFull(c, got); err != nil || string(got) != "world" {
		t.Fatalf("remote read %q, %v", got, err)
	}
	if s.pair.Local.Port != 80 || s.pair.Peer.AddrPort().Addr().String() != remoteAddr {
		t.Errorf("addresses %v", s.pair)
	}
	s.close(0)
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
	if n, err := c.Read(got); n != 0 || err != io.EOF {
		t.Errorf("after close: %d, %v", n, err)
	}
}

func TestConnectEcho(t *testing.T) {
	r := newRig(t, rigOptions{})
	h := newHost(t, r.agent, testLayout(1))
	l := r.remote.listen(t, remoteAddr+":9000")
	go echo(l)
	s := h.connect(0, remoteAddr+":9000", "")
	if s.errno != 0 {
		t.Fatalf("errno %d", s.errno)
	}
	if err := s.write([]byte("ping")); err != nil {
		t.Fatal(err)
	}
	if b, err := s.readN(4); err != nil || string(b) != "ping" {
		t.Fatalf("read %q, %v", b, err)
	}
	s.shutdown(1)
	if n, err := s.read(make([]byte, 10)); n != 0 || err != nil {
		t.Fatalf("end of stream: %d, %v", n, err)
	}
	s.close(0)
}

func echo(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			_, _ = io.Copy(c, c)
			_ = c.Close()
		}()
	}
}

// SPDX-License-Identifier: Apache-2.0

package dpu_test

import (
	"io"
	"net"
	"testing"
	"time"

	"pno/offload"
)

// acceptOnOne has a client connect to a listener that is subscribed to on
// channel 1, and returns the connection as announced there, not accepted.
func acceptOnOne(t *testing.T, r *rig, h *host) (l, s *hsock, c net.Conn) {
	t.Helper()
	l, errno := h.bind(0, dpuAddr+":80", offload.BindReuseAddr)
	if errno != 0 {
		t.Fatalf("bind: errno %d", errno)
	}
	if a := h.request(0, offload.OpListen, l.handle, 8, nil); a.errno != 0 {
		t.Fatalf("listen: errno %d", a.errno)
	}
	h.do(func() { h.emitOn(1, 0, offload.OpSubscribe, 0, l.handle, 0, 8, nil) })
	c = r.remote.dial(t, dpuAddr+":80")
	h.until("announced", func() bool { return len(l.accepts) == 1 })
	h.do(func() { s, l.accepts = l.accepts[0], nil; s.channel = 1 })
	return l, s, c
}

func TestCloseOfListenerAfterAccepted(t *testing.T) {
	r := newRig(t, rigOptions{})
	h := newHost(t, r.agent, testLayout(1))
	h.openChannel(1)
	for range 5 {
		l, s, c := acceptOnOne(t, r, h)
		time.Sleep(20 * time.Millisecond) // the DPU sleeps
		h.do(func() {
			// The thread that accepts is not yet at the doorbell.
			h.qps[1][0].Emit(offload.OpAccepted, 0, s.handle, 0, 0, 0)
			h.qps[1][0].Publish()
			h.emitOn(0, 0, offload.OpClose, 0, l.handle, 0, 0, nil)
		})
		if err := s.write([]byte("abc")); err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		b := make([]byte, 3)
		if _, err := io.ReadFull(c, b); err != nil || string(b) != "abc" {
			t.Fatalf("accepted before its listener was closed: %q, %v", b, err)
		}
		s.close(0)
		_ = c.Close()
	}
}

// A connection that nobody accepted does not outlive its listener, nor does
// the wait for another ring outlast its bound.
func TestCloseOfListenerNotAccepted(t *testing.T) {
	r := newRig(t, rigOptions{})
	h := newHost(t, r.agent, testLayout(1))
	h.openChannel(1)
	l, _, c := acceptOnOne(t, r, h)
	h.do(func() { h.emitOn(0, 0, offload.OpClose, 0, l.handle, 0, 0, nil) })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Errorf("not accepted, listener closed: %v, want a reset", err)
	}
}

// What was closed on one channel is free to be bound on another.
func TestBindAfterCloseElsewhere(t *testing.T) {
	r := newRig(t, rigOptions{})
	h := newHost(t, r.agent, testLayout(1))
	h.openChannel(1)
	const addr = dpuAddr + ":81"
	for i := range 20 {
		l, errno := h.bind(0, addr, 0)
		if errno != 0 {
			t.Fatalf("bind %d: errno %d", i, errno)
		}
		if a := h.request(0, offload.OpListen, l.handle, 8, nil); a.errno != 0 {
			t.Fatalf("listen: errno %d", a.errno)
		}
		if i%2 == 0 {
			time.Sleep(5 * time.Millisecond) // the DPU sleeps
		}
		h.do(func() {
			// The thread that closes is not yet at the doorbell.
			h.qps[1][0].Emit(offload.OpClose, 0, l.handle, 0, 0, 0)
			h.qps[1][0].Publish()
		})
	}
}

// SPDX-License-Identifier: Apache-2.0

package dpu_test

import (
	"syscall"
	"testing"

	"pno/offload"
)

// A host that holds its writer to a small buffer hears of every byte that was
// taken, long before a quarter of the session's window has gathered; and it is
// sent no more than its own small window.
func TestSmallBuffers(t *testing.T) {
	const small = 4096
	r := newRig(t, rigOptions{})
	h := newHost(t, r.agent, testLayout(1))
	if h.l.TxWindow/4 <= small || h.l.RxWindow <= 4*small {
		t.Fatalf("windows of %d and %d bytes prove nothing", h.l.TxWindow, h.l.RxWindow)
	}
	l := r.remote.listen(t, remoteAddr+":80")
	s := h.connect(0, remoteAddr+":80", "")
	if s.errno != 0 {
		t.Fatalf("connect: errno %d", s.errno)
	}
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, opt := range []uint32{syscall.SO_SNDBUF, syscall.SO_RCVBUF} {
		if errno := s.setOpt(syscall.SOL_SOCKET, opt, small); errno != 0 {
			t.Fatalf("option %d: errno %d", opt, errno)
		}
	}
	for sent := uint64(small); sent <= 8*small; sent += small {
		h.do(func() {
			s.emit(offload.OpSend, 0, uint32(s.tx), uint32(s.consumed), make([]byte, small))
			s.tx += small
		})
		h.until("the writer may go on", func() bool { return s.taken == sent })
	}
	// The test's host reports consumption only when asked to read.
	if n, err := conn.Write(make([]byte, 3*small)); err != nil || n != 3*small {
		t.Fatalf("%d, %v", n, err)
	}
	h.until("a window of data", func() bool { return s.rxEnd == small })
	if _, err := s.readN(small / 2); err != nil {
		t.Fatal(err)
	}
	h.do(func() { s.emit(offload.OpRxAck, 0, 0, uint32(s.consumed), nil) })
	h.until("as much as was read", func() bool { return s.rxEnd == small+small/2 })
}

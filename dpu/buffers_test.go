// SPDX-License-Identifier: Apache-2.0

package dpu_test

import (
	"encoding/binary"
	"net"
	"syscall"
	"testing"
	"time"

	"pno/dpu/netstack"
	"pno/offload"
	"pno/sim/wire"
)

// A host that holds its writer to a small buffer hears of what was
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
		// Half a buffer may be left untold, if the stack took the rest by itself.
		h.until("the writer may go on", func() bool { return sent-s.taken < small/2 })
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

// The window that the peer is offered follows what is read, so that one
// connection may fill a wire that is long.
func TestReceiveWindowGrows(t *testing.T) {
	slow := wire.Faults{Delay: 2 * time.Millisecond}
	r := newRig(t, rigOptions{faults: [2]wire.Faults{slow, slow}})
	h := newHost(t, r.agent, testLayout(1))
	l := r.remote.listen(t, remoteAddr+":80")
	s := h.connect(0, remoteAddr+":80", "")
	if s.errno != 0 {
		t.Fatalf("connect: errno %d", s.errno)
	}
	conn := acceptOne(t, l)
	go func() {
		for b := make([]byte, 1<<20); ; {
			if _, err := conn.Write(b); err != nil {
				return
			}
		}
	}()
	const begin = netstack.DefaultRecvBuffer
	for end := time.Now().Add(20 * time.Second); ; {
		if _, err := s.readN(256 << 10); err != nil {
			t.Fatal(err)
		}
		o, errno := s.getOpt(syscall.SOL_SOCKET, syscall.SO_RCVBUF)
		if errno != 0 {
			t.Fatalf("SO_RCVBUF: errno %d", errno)
		}
		n := binary.LittleEndian.Uint32(o.Val[:])
		if n >= 2*begin {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("a receive buffer of %d bytes, %d at first", n, begin)
		}
	}
}

func acceptOne(t *testing.T, l net.Listener) net.Conn {
	t.Helper()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

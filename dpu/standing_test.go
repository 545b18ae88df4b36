// SPDX-License-Identifier: Apache-2.0

package dpu_test

import (
	"bytes"
	"encoding/hex"
	"io"
	"testing"
	"time"

	"pno/offload"
)

// standing is what a holder was told of a connection that it shares.
type standing struct{ received, flags uint32 }

// last waits until the holder was last told this.
func (s *hsock) last(what string, want standing) {
	s.h.t.Helper()
	s.h.until(what, func() bool { return len(s.standings) > 0 && s.standings[len(s.standings)-1] == want })
}

// shared makes a connection that a parent has and its child has at home.
func (r *rig) shared(t *testing.T) (c io.ReadWriteCloser, parent, child *hsock) {
	t.Helper()
	p := newHost(t, r.agent, testLayout(1))
	l := p.listen(0, dpuAddr+":80")
	remote := r.remote.dial(t, dpuAddr+":80")
	parent = l.accept()
	child = forkOf(t, p, 9).sock(parent)
	child.claim(0)
	child.adopt()
	p.until("revoked", func() bool { return parent.revoked })
	return remote, parent, child
}

// A holder that is not at home hears that there is something to read, once for
// all that comes until it has answered, and that there is no more.
func TestStanding(t *testing.T) {
	r := newRig(t, rigOptions{})
	c, parent, child := r.shared(t)
	_, _ = c.Write([]byte("abc"))
	parent.last("readable", standing{3, offload.StandingReadable})
	for range 20 {
		_, _ = c.Write([]byte("d"))
	}
	child.h.until("all data", func() bool { return len(child.rx) == 23 })
	parent.h.do(func() {
		if n := len(parent.standings); n != 1 {
			t.Errorf("told %d times without an answer", n)
		}
		parent.heed = true
		parent.emit(offload.OpHeard, 0, 0, 0, nil)
	})
	parent.last("readable, more", standing{23, offload.StandingReadable})
	if b, err := child.readN(23); err != nil || len(b) != 23 {
		t.Fatalf("%q, %v", b, err)
	}
	child.h.do(func() { child.emit(offload.OpRxAck, 0, 0, uint32(child.consumed), nil) })
	parent.last("nothing to read", standing{23, 0})
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	parent.last("ended", standing{23, offload.StandingReadable | offload.StandingEnded})
}

// What one holder shuts down is shut for the others: they are told, and at the
// latest before they are at home.
func TestStandingShut(t *testing.T) {
	r := newRig(t, rigOptions{})
	c, parent, child := r.shared(t)
	parent.h.do(func() { parent.heed = true })
	child.shutdown(offload.FlagShutNoted)
	parent.last("shut for reading", standing{0, offload.StandingShutRead})
	_, _ = c.Write([]byte("late")) // can still be read
	if b, err := child.readN(4); err != nil || string(b) != "late" {
		t.Fatalf("%q, %v", b, err)
	}
	// Who has not answered is told when it claims the connection.
	grandchild := forkOf(t, child.h, 10).sock(child)
	_, _ = c.Write([]byte("q"))
	grandchild.last("readable", standing{5, offload.StandingReadable | offload.StandingShutRead})
	if err := child.write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	child.shutdown(1)
	parent.last("shut for sending", standing{5, offload.StandingReadable | offload.StandingShutRead | offload.StandingShutSend})
	grandchild.h.do(func() {
		if n := len(grandchild.standings); n != 1 {
			t.Errorf("told %d times without an answer", n)
		}
	})
	grandchild.claim(0)
	grandchild.h.do(func() {
		if n := len(grandchild.standings); grandchild.standings[n-1].flags != offload.StandingShutRead|offload.StandingShutSend {
			t.Errorf("told before Claimed: %+v", grandchild.standings)
		}
	})
	if b, err := io.ReadAll(c); err != nil || string(b) != "x" {
		t.Errorf("%q, %v", b, err)
	}
}

// What a holder did before another one claims the connection comes first, in
// whatever order the DPU looks at their rings.
func TestClaimKeepsOrder(t *testing.T) {
	r := newRig(t, rigOptions{})
	c, parent, child := r.shared(t)
	const rounds = 200
	from, to := child, parent
	for i := range rounds {
		letter := []byte{byte('a' + i%26)}
		from.h.do(func() {
			from.emit(offload.OpSend, 0, uint32(from.tx), uint32(from.consumed), letter)
			from.tx++
		})
		to.claim(0)
		to.adopt()
		from, to = to, from
	}
	got := make([]byte, rounds)
	if _, err := io.ReadFull(c, got); err != nil {
		t.Fatal(err)
	}
	for i, b := range got {
		if b != byte('a'+i%26) {
			t.Fatalf("byte %d is %q: %q", i, b, got)
		}
	}
}

// Two sessions that claim from each other do not wait for each other.
func TestClaimsCross(t *testing.T) {
	r := newRig(t, rigOptions{})
	p := newHost(t, r.agent, testLayout(1))
	l := p.listen(0, dpuAddr+":80")
	r.remote.dial(t, dpuAddr+":80")
	one := l.accept()
	r.remote.dial(t, dpuAddr+":80")
	two := l.accept()
	child := forkOf(t, p, 9)
	cone, ctwo := child.sock(one), child.sock(two)
	cone.claim(0)
	cone.adopt()
	began := time.Now()
	const rounds = 50
	for range rounds {
		p.do(func() { one.claimed = nil; one.emit(offload.OpClaim, 0, 0, 0, nil) })
		child.do(func() { ctwo.claimed = nil; ctwo.emit(offload.OpClaim, 0, 0, 0, nil) })
		p.until("claimed", func() bool { return one.claimed != nil })
		child.until("claimed", func() bool { return ctwo.claimed != nil })
		one, cone, two, ctwo = cone, one, ctwo, two
		p, child = child, p
	}
	if d := time.Since(began); d > 10*time.Second {
		t.Errorf("%d rounds took %v", rounds, d)
	}
}

// A datagram socket that nobody has but a message keeps what came for it, read
// by nobody, before and after.
func TestParkedDatagrams(t *testing.T) {
	r := newRig(t, rigOptions{})
	a, b := newHost(t, r.agent, testLayout(1)), newHost(t, r.agent, testLayout(1))
	s, errno := a.udp(0, dpuAddr+":53", "", 0)
	if errno != 0 {
		t.Fatal(errno)
	}
	c := r.remote.udp(t, remoteAddr+":4000", dpuAddr+":53")
	for _, text := range []string{"read", "not read"} {
		if _, err := c.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	a.until("both", func() bool { return len(s.dgrams) == 2 })
	read := uint32(offload.DgramSize + len("read"))
	frame := make([]byte, offload.DgramSize)
	s.dgrams[1].Put(frame)
	frame = append(frame, s.dgrams[1].data...)
	tok := bytes.Repeat([]byte{7}, 16)
	if e := a.request(0, offload.OpShared, s.handle, read, tok); e.errno != 0 || len(e.payload) != 4 {
		t.Fatalf("shared: errno %d, %v", e.errno, e.payload)
	}
	if e := a.request(0, offload.OpUnread, s.handle, read, frame); e.errno != 0 {
		t.Fatalf("unread: errno %d", e.errno)
	}
	a.do(func() { s.consumed = uint64(read) })
	s.close(0)
	if _, err := c.Write([]byte("late")); err != nil {
		t.Fatal(err)
	}
	m, err := a.agent.call(&offload.Control{Type: offload.CtlSocketTransfer, Session: b.id, Token: hex.EncodeToString(tok)})
	if err != nil {
		t.Fatal(err)
	}
	bs := &hsock{h: b, handle: m.Handle, rxEnd: uint64(read)}
	b.do(func() { b.socks[sockKey{0, m.Handle}] = bs })
	bs.claim(0)
	for _, want := range []string{"not read", "late"} {
		if d := bs.recvFrom(); string(d.data) != want {
			t.Fatalf("%q, want %q", d.data, want)
		}
	}
	bs.close(0)
	if _, err := a.agent.call(&offload.Control{Type: offload.CtlForkDrop, Token: hex.EncodeToString(tok)}); err != nil {
		t.Fatal(err)
	}
	if _, errno := b.udp(0, dpuAddr+":53", "", 0); errno != 0 {
		t.Errorf("the address after the last reference: errno %d", errno)
	}
}

// A bound socket in a message keeps its address.
func TestParkedBound(t *testing.T) {
	r := newRig(t, rigOptions{})
	a, b := newHost(t, r.agent, testLayout(1)), newHost(t, r.agent, testLayout(1))
	s, errno := a.bind(0, dpuAddr+":80", 0)
	if errno != 0 {
		t.Fatal(errno)
	}
	tok := bytes.Repeat([]byte{7}, 16)
	if e := a.request(0, offload.OpShared, s.handle, 0, tok); e.errno != 0 {
		t.Fatalf("shared: errno %d", e.errno)
	}
	a.kill()
	m, err := a.agent.call(&offload.Control{Type: offload.CtlSocketTransfer, Session: b.id, Token: hex.EncodeToString(tok)})
	if err != nil {
		t.Fatal(err)
	}
	if e := b.request(0, offload.OpListen, m.Handle, 5, nil); e.errno != 0 {
		t.Fatalf("listen: errno %d", e.errno)
	}
	bl := &hsock{h: b, handle: m.Handle}
	b.do(func() { b.socks[sockKey{0, m.Handle}] = bl })
	bl.subscribe(5)
	r.remote.dial(t, dpuAddr+":80")
	bl.accept()
}

// SO_LINGER is the socket's, not a holder's: who closes last, or dies, resets.
func TestLingerOfTheLast(t *testing.T) {
	r := newRig(t, rigOptions{})
	c, parent, child := r.shared(t)
	val := offload.OptVal{Level: 1, Name: 13, Len: 8} // SOL_SOCKET, SO_LINGER
	val.Val[0] = 1
	b := make([]byte, offload.OptValSize)
	val.Put(b)
	if e := child.h.request(0, offload.OpSetOpt, child.handle, 0, b); e.errno != 0 {
		t.Fatalf("errno %d", e.errno)
	}
	child.h.kill()
	parent.close(0)
	if _, err := io.ReadAll(c); err == nil {
		t.Error("ended in order")
	}
}

// SPDX-License-Identifier: Apache-2.0

package dpu_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pno/offload"
)

// forkOf does what the shim does around fork: a token on every shard, a new
// session, the grant, and a copy of each socket's state.
func forkOf(t *testing.T, h *host, token byte) *host {
	t.Helper()
	tok := bytes.Repeat([]byte{token}, 16)
	for s := range h.l.Shards {
		if a := h.request(s, offload.OpFork, 0, 0, tok); a.errno != 0 {
			t.Fatalf("fork: errno %d", a.errno)
		}
	}
	child := newHost(t, h.agent, h.l)
	h.do(func() {
		child.do(func() {
			child.next = h.next
			for k, s := range h.socks {
				c := *s
				c.h, c.accepts, c.rx = child, nil, append([]byte(nil), s.rx...)
				child.socks[k] = &c
			}
		})
	})
	if _, err := h.agent.call(&offload.Control{
		Type: offload.CtlForkAdopt, Session: child.id, Token: hex.EncodeToString(tok),
	}); err != nil {
		t.Fatal(err)
	}
	return child
}

func (h *host) sock(s *hsock) (c *hsock) {
	h.do(func() { c = h.socks[sockKey{s.shard, s.handle}] })
	return c
}

// claim makes a host the receiver of a shared socket.
func (s *hsock) claim(channel int) {
	s.h.t.Helper()
	s.h.do(func() {
		s.claimed, s.channel = nil, channel
		s.emit(offload.OpClaim, 0, 0, 0, nil)
	})
	s.h.until("claimed", func() bool { return s.claimed != nil })
}

// adopt takes over what Claimed told about a socket of another process.
func (s *hsock) adopt() {
	s.h.do(func() {
		skip := int32(s.claimed.Seq - uint32(s.consumed))
		if skip > 0 {
			s.rx = s.rx[min(int(skip), len(s.rx)):]
			s.consumed += uint64(skip)
			s.rxEnd = max(s.rxEnd, s.consumed)
		}
		s.tx += uint64(s.claimed.Ack - uint32(s.tx))
		s.taken = s.tx
	})
}

func TestListenerSurvivesItsForker(t *testing.T) {
	r := newRig(t, rigOptions{})
	master := newHost(t, r.agent, testLayout(1))
	l, _ := master.bind(0, dpuAddr+":80", offload.BindReuseAddr)
	if a := master.request(0, offload.OpListen, l.handle, 64, nil); a.errno != 0 {
		t.Fatal(a.errno)
	}
	var workers []*host
	for i := range 2 {
		w := forkOf(t, master, byte(i+1))
		w.sock(l).subscribe(2)
		workers = append(workers, w)
	}
	var conns []net.Conn
	for range 4 {
		conns = append(conns, r.remote.dial(t, dpuAddr+":80"))
	}
	for i, w := range workers {
		wl := w.sock(l)
		w.until("two connections each", func() bool { return len(wl.accepts) == 2 })
		_ = i
	}
	for i, c := range conns {
		if _, err := fmt.Fprintf(c, "request %d", i); err != nil {
			t.Fatal(err)
		}
	}
	wl := workers[0].sock(l)
	workers[0].until("data before accept", func() bool { return len(wl.accepts[0].rx) > 0 && len(wl.accepts[1].rx) > 0 })
	master.kill()
	workers[0].kill() // unaccepted, with data: the other worker gets them whole
	wl = workers[1].sock(l)
	wl.subscribe(10)
	for range 4 {
		s := wl.accept()
		b, err := s.readN(9)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.write(b); err != nil {
			t.Fatal(err)
		}
		s.close(0)
	}
	for i, c := range conns {
		_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
		if b, err := io.ReadAll(c); err != nil || string(b) != fmt.Sprintf("request %d", i) {
			t.Errorf("connection %d: %q, %v", i, b, err)
		}
	}
	if n := r.d.Stats().Sockets.HandedOver; n != 2 {
		t.Errorf("%d connections handed over, want 2", n)
	}
	workers[1].kill()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); {
		if r.d.Stats().Sockets.Open == 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("sockets left: %+v", r.d.Sockets())
}

func TestUnsubscribeAndAcceptBack(t *testing.T) {
	r := newRig(t, rigOptions{})
	h := newHost(t, r.agent, testLayout(1))
	l := h.listen(0, dpuAddr+":80")
	c := r.remote.dial(t, dpuAddr+":80")
	_, _ = c.Write([]byte("abc"))
	h.until("announced", func() bool { return len(l.accepts) == 1 && len(l.accepts[0].rx) == 3 })
	h.do(func() {
		old := l.accepts[0]
		l.accepts = nil
		delete(h.socks, sockKey{0, old.handle})
		h.emit(0, offload.OpAcceptBack, 0, old.handle, 0, 0, nil)
	})
	h.until("announced again", func() bool { return len(l.accepts) == 1 && len(l.accepts[0].rx) == 3 })
	if a := h.request(0, offload.OpUnsubscribe, l.handle, 0, nil); a.errno != 0 {
		t.Fatal(a.errno)
	}
	h.do(func() { l.accepts = nil })
	l.subscribe(1)
	s := l.accept()
	if b, err := s.readN(3); err != nil || string(b) != "abc" {
		t.Errorf("%q, %v", b, err)
	}
}

func TestForkedConnection(t *testing.T) {
	r := newRig(t, rigOptions{})
	parent := newHost(t, r.agent, testLayout(1))
	l := parent.listen(0, dpuAddr+":80")
	c := r.remote.dial(t, dpuAddr+":80")
	s := l.accept()
	_, _ = c.Write([]byte("before "))
	parent.until("data", func() bool { return len(s.rx) == 7 })
	if b, _ := s.readN(3); string(b) != "bef" {
		t.Fatalf("%q", b)
	}
	child := forkOf(t, parent, 9)
	// What comes now goes to the parent, which does not read it.
	_, _ = c.Write([]byte("after "))
	parent.until("data", func() bool { return len(s.rx) == 10 })
	cs := child.sock(s)
	cs.claim(0)
	cs.adopt()
	_, _ = c.Write([]byte("claim"))
	if b, err := cs.readN(15); err != nil || string(b) != "ore after claim" {
		t.Fatalf("child read %q, %v", b, err)
	}
	parent.until("revoked", func() bool { return s.revoked })
	if err := cs.write([]byte("from child")); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 10)
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "from child" {
		t.Fatalf("%q, %v", b, err)
	}
	// The parent's close does not end the connection, nor does its death.
	s.close(0)
	parent.kill()
	if err := cs.write([]byte("still here")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "still here" {
		t.Fatalf("%q, %v", b, err)
	}
	cs.close(0)
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := c.Read(b); err != io.EOF {
		t.Errorf("after the last close: %v", err)
	}
}

func TestForkDropped(t *testing.T) {
	r := newRig(t, rigOptions{})
	h := newHost(t, r.agent, testLayout(1))
	h.listen(0, dpuAddr+":80")
	tok := bytes.Repeat([]byte{3}, 16)
	if a := h.request(0, offload.OpFork, 0, 0, tok); a.errno != 0 {
		t.Fatal(a.errno)
	}
	h.kill()
	if n := r.d.Stats().Sockets.Open; n != 1 {
		t.Fatalf("%d sockets while the child may come, want 1", n)
	}
	if _, err := h.agent.call(&offload.Control{Type: offload.CtlForkDrop, Token: hex.EncodeToString(tok)}); err != nil {
		t.Fatal(err)
	}
	if st := r.d.Stats(); st.Sockets.Open != 0 || st.Sessions.ForkWaits != 0 {
		t.Errorf("left: %+v", st.Sockets)
	}
	if _, err := h.agent.call(&offload.Control{
		Type: offload.CtlForkAdopt, Session: h.id, Token: hex.EncodeToString(tok),
	}); err == nil {
		t.Error("a dropped token was adopted")
	}
}

// A process that dies between Fork and the news of its child leaves nothing: the
// connections end as if it had closed them. One whose child is watched does.
func TestParentDiesInFork(t *testing.T) {
	for _, watched := range []bool{false, true} {
		t.Run(fmt.Sprint("watched ", watched), func(t *testing.T) {
			r := newRig(t, rigOptions{forks: 200 * time.Millisecond})
			h := newHost(t, r.agent, testLayout(1))
			l := h.listen(0, dpuAddr+":80")
			c := r.remote.dial(t, dpuAddr+":80")
			l.accept()
			tok := bytes.Repeat([]byte{7}, 16)
			for s := range h.l.Shards {
				if a := h.request(s, offload.OpFork, 0, 0, tok); a.errno != 0 {
					t.Fatalf("fork: errno %d", a.errno)
				}
			}
			if watched {
				if _, err := r.agent.call(&offload.Control{Type: offload.CtlForkKeep, Token: hex.EncodeToString(tok)}); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := r.agent.call(&offload.Control{Type: offload.CtlSessionClose, Session: h.id}); err != nil {
				t.Fatal(err)
			}
			h.kill()
			wait := 10 * time.Second
			if watched {
				wait = time.Second
			}
			_ = c.SetReadDeadline(time.Now().Add(wait))
			_, err := c.Read(make([]byte, 1))
			var ne net.Error
			goesOn := errors.As(err, &ne) && ne.Timeout()
			if left := r.d.Stats().Sessions.ForkWaits; watched {
				if !goesOn || left != 1 {
					t.Errorf("the child's connection ends with %v, %d grants", err, left)
				}
			} else if err == nil || goesOn || left != 0 {
				t.Errorf("the connection goes on (%v), %d grants", err, left)
			}
		})
	}
}

func TestForksAreBounded(t *testing.T) {
	r := newRig(t, rigOptions{})
	h := newHost(t, r.agent, testLayout(1))
	tok := make([]byte, 16)
	for i := range 1025 {
		tok[0], tok[1] = byte(i), byte(i>>8)
		want := uint32(0)
		if i == 1024 {
			want = 11 // EAGAIN
		}
		if a := h.request(0, offload.OpFork, 0, 0, tok); a.errno != want {
			t.Fatalf("fork %d: errno %d, want %d", i, a.errno, want)
		}
	}
}

func TestClaimMovesBetweenChannels(t *testing.T) {
	r := newRig(t, rigOptions{})
	h := newHost(t, r.agent, testLayout(1))
	h.openChannel(1)
	l := r.remote.listen(t, remoteAddr+":9000")
	go echo(l)
	s := h.connect(0, remoteAddr+":9000", "")
	data := pattern(4, 1<<20)
	done := make(chan error, 1)
	go func() {
		for i := 0; i < len(data); i += 1 << 14 {
			if err := s.write(data[i : i+1<<14]); err != nil {
				done <- err
				return
			}
			// The claim overtakes sends that still lie in the other ring.
			h.do(func() {
				s.channel = 1 - s.channel
				s.emit(offload.OpClaim, 0, 0, 0, nil)
			})
		}
		done <- nil
	}()
	var got []byte
	b := make([]byte, 1<<16)
	for len(got) < len(data) {
		n, err := s.read(b)
		if err != nil || n == 0 {
			t.Fatalf("after %d bytes: %v", len(got), err)
		}
		got = append(got, b[:n]...)
	}
	if err := <-done; err != nil || !bytes.Equal(got, data) {
		t.Fatalf("differs, %v", err)
	}
}

func TestTransfer(t *testing.T) {
	r := newRig(t, rigOptions{})
	a, b := newHost(t, r.agent, testLayout(1)), newHost(t, r.agent, testLayout(1))
	l := a.listen(0, dpuAddr+":80")
	m, err := a.agent.call(&offload.Control{
		Type: offload.CtlSocketTransfer, Session: b.id, From: a.id, Handle: l.handle,
	})
	if err != nil {
		t.Fatal(err)
	}
	bl := &hsock{h: b, handle: m.Handle}
	b.do(func() { b.socks[sockKey{0, m.Handle}] = bl })
	a.kill()
	bl.subscribe(5)
	r.remote.dial(t, dpuAddr+":80")
	bl.accept()
}

// TestParkedConnection passes a connection on: its sender gives unread data
// back and is gone before the receiver is known.
func TestParkedConnection(t *testing.T) {
	r := newRig(t, rigOptions{})
	a, b := newHost(t, r.agent, testLayout(1)), newHost(t, r.agent, testLayout(1))
	l := a.listen(0, dpuAddr+":80")
	c := r.remote.dial(t, dpuAddr+":80")
	s := l.accept()
	_, _ = c.Write([]byte("read, not read"))
	a.until("data", func() bool { return len(s.rx) == 14 })
	if got, _ := s.readN(6); string(got) != "read, " {
		t.Fatalf("%q", got)
	}
	tok := bytes.Repeat([]byte{7}, 16)
	park := a.request(0, offload.OpShared, s.handle, 6, tok)
	if park.errno != 0 || len(park.payload) != 4 || park.payload[0] != 14 {
		t.Fatalf("shared: errno %d, %v", park.errno, park.payload)
	}
	_, _ = c.Write([]byte(", new"))
	// Last block first; one that has been read already, and one with a gap, are ignored.
	for _, u := range []struct {
		at   uint32
		text string
	}{{2, "xx"}, {10, "read"}, {3, "xxx not "}, {6, "not "}} {
		if e := a.request(0, offload.OpUnread, s.handle, u.at, []byte(u.text)); e.errno != 0 {
			t.Fatalf("unread: errno %d", e.errno)
		}
	}
	a.kill()
	m, err := a.agent.call(&offload.Control{Type: offload.CtlSocketTransfer, Session: b.id, Token: hex.EncodeToString(tok)})
	if err != nil {
		t.Fatal(err)
	}
	bs := &hsock{h: b, handle: m.Handle}
	b.do(func() { b.socks[sockKey{0, m.Handle}] = bs })
	b.do(func() { bs.rxEnd, bs.consumed = 6, 6 })
	bs.claim(0)
	if bs.claimed.Seq != 6 {
		t.Errorf("claimed at %d", bs.claimed.Seq)
	}
	if got, err := bs.readN(13); err != nil || string(got) != "not read, new" {
		t.Fatalf("%q, %v", got, err)
	}
	// The receiver's close is not the end while a descriptor may be on its way.
	bs.close(0)
	buf := make([]byte, 1)
	_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if _, err := c.Read(buf); err == nil || err == io.EOF {
		t.Errorf("the connection ended with a reference left: %v", err)
	}
	if _, err := a.agent.call(&offload.Control{Type: offload.CtlForkDrop, Token: hex.EncodeToString(tok)}); err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := c.Read(buf); err != io.EOF {
		t.Errorf("after the last reference: %v", err)
	}
	if _, err := a.agent.call(&offload.Control{Type: offload.CtlSocketTransfer, Session: b.id, Token: hex.EncodeToString(tok)}); err == nil {
		t.Error("transferred by a token that is gone")
	}
}

// TestParkedListener passes a listener on, whose sender is gone before the
// receiver is known, with a connection that nobody has accepted.
func TestParkedListener(t *testing.T) {
	r := newRig(t, rigOptions{})
	a, b := newHost(t, r.agent, testLayout(1)), newHost(t, r.agent, testLayout(1))
	l := a.listen(0, dpuAddr+":80")
	tok := bytes.Repeat([]byte{8}, 16)
	if e := a.request(0, offload.OpShared, l.handle, 0, tok); e.errno != 0 {
		t.Fatalf("shared: errno %d", e.errno)
	}
	c := r.remote.dial(t, dpuAddr+":80")
	a.until("announced", func() bool { return len(l.accepts) == 1 })
	a.kill()
	m, err := a.agent.call(&offload.Control{Type: offload.CtlSocketTransfer, Session: b.id, Token: hex.EncodeToString(tok)})
	if err != nil {
		t.Fatal(err)
	}
	bl := &hsock{h: b, handle: m.Handle}
	b.do(func() { b.socks[sockKey{0, m.Handle}] = bl })
	bl.subscribe(5)
	s := bl.accept()
	_, _ = c.Write([]byte("abc"))
	if got, err := s.readN(3); err != nil || string(got) != "abc" {
		t.Fatalf("%q, %v", got, err)
	}
	bl.close(0)
	if _, errno := b.bind(0, dpuAddr+":80", 0); errno != uint32(unix.EADDRINUSE) {
		t.Errorf("the address of a listener that is in a message: errno %d", errno)
	}
	if _, err := a.agent.call(&offload.Control{Type: offload.CtlForkDrop, Token: hex.EncodeToString(tok)}); err != nil {
		t.Fatal(err)
	}
	if _, errno := b.bind(0, dpuAddr+":80", offload.BindReuseAddr); errno != 0 {
		t.Errorf("the address after the last reference: errno %d", errno)
	}
}

// TestAlone tells a holder that it is the last one, and one that waits that
// nobody is at home any more.
func TestAlone(t *testing.T) {
	r := newRig(t, rigOptions{})
	parent := newHost(t, r.agent, testLayout(1))
	l := parent.listen(0, dpuAddr+":80")
	c := r.remote.dial(t, dpuAddr+":80")
	s := l.accept()
	first, second := forkOf(t, parent, 1), forkOf(t, parent, 2)
	cs := first.sock(s)
	cs.claim(0)
	cs.adopt()
	parent.until("revoked", func() bool { return s.revoked })
	cs.close(0)
	parent.until("homeless", func() bool { return s.homeless })
	parent.do(func() {
		if s.alone {
			t.Error("alone, but for the second child")
		}
	})
	s.claim(0)
	second.kill()
	parent.until("alone", func() bool { return s.alone })
	_, _ = c.Write([]byte("x"))
	if b, err := s.readN(1); err != nil || string(b) != "x" {
		t.Fatalf("%q, %v", b, err)
	}
}

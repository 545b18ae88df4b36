// SPDX-License-Identifier: Apache-2.0

package dpu_test

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"pno/offload"
)

// hold puts s on hold, and returns what was sent before.
func (s *hsock) hold() (before []byte) {
	s.h.t.Helper()
	s.h.do(func() {
		s.generation++
		s.emit(offload.OpHold, offload.FlagHoldOn, uint32(s.generation), uint32(s.consumed), nil)
	})
	// A request that is answered comes after it.
	s.h.request(s.shard, offload.OpGetOpt, offload.HandleHost|0xfffff, 0, make([]byte, offload.OptValSize))
	s.h.do(func() {
		before, s.rx = s.rx, nil
		s.consumed += uint64(len(before))
		s.emit(offload.OpRxAck, 0, 0, uint32(s.consumed), nil)
	})
	return before
}

// letGo ends the hold.
func (s *hsock) letGo() {
	s.h.do(func() {
		s.generation, s.held = s.generation+1, 0 // what was told is no longer true
		s.emit(offload.OpHold, 0, 0, uint32(s.consumed), nil)
	})
}

// move has n bytes of what s holds sent on to, of those that may go; it
// returns how many were.
func (s *hsock) move(to *hsock, n int) (moved int) {
	s.h.do(func() {
		moved = min(n, int(s.held-s.consumed), int(offload.MoveWindow-(to.tx-to.taken)))
		if moved <= 0 {
			moved = 0
			return
		}
		b := make([]byte, offload.MoveReqSize)
		offload.MoveReq{From: s.handle, Off: uint32(s.consumed), Len: uint32(moved)}.Put(b)
		if !to.emit(offload.OpMove, 0, uint32(to.tx), uint32(to.consumed), b) {
			moved = 0
			return
		}
		to.tx += uint64(moved)
		s.consumed += uint64(moved)
		s.rxEnd = s.consumed // the next Data begins there
	})
	return moved
}

// moveAll moves n bytes in pieces of at most most.
func (s *hsock) moveAll(to *hsock, n, most int) {
	s.h.t.Helper()
	for end := time.Now().Add(20 * time.Second); n > 0; {
		k := s.move(to, min(n, 1+rand.IntN(most)))
		if k == 0 {
			time.Sleep(50 * time.Microsecond)
		}
		if n -= k; time.Now().After(end) {
			s.h.t.Fatalf("%d bytes were not moved in time", n)
		}
	}
}

func (s *hsock) awaitHeld(n uint64) {
	s.h.t.Helper()
	s.h.until("data on hold", func() bool { return s.held >= n })
}

// relayRig is a host with two connections, and the other ends of both.
func relayRig(t *testing.T) (r *rig, h *host, a, b *hsock, source, sink net.Conn) {
	t.Helper()
	r = newRig(t, rigOptions{})
	h = newHost(t, r.agent, testLayout(1))
	l := r.remote.listen(t, remoteAddr+":9000")
	a = h.connect(0, remoteAddr+":9000", "")
	source = acceptOne(t, l)
	b = h.connect(0, remoteAddr+":9000", "")
	sink = acceptOne(t, l)
	return
}

func expect(t *testing.T, c io.Reader, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("the bytes differ")
	}
}

// What is moved arrives whole and never crosses to the host.
func TestMove(t *testing.T) {
	for name, most := range map[string]int{"small pieces": 2000, "large pieces": 1 << 17} {
		t.Run(name, func(t *testing.T) {
			r, _, a, b, source, sink := relayRig(t)
			body := pattern(5, 3<<20)
			a.hold()
			go func() { _, _ = source.Write(body) }()
			got := make(chan []byte, 1)
			go func() {
				all := make([]byte, len(body))
				n, _ := io.ReadFull(sink, all)
				got <- all[:n]
			}()
			a.moveAll(b, len(body), most)
			if !bytes.Equal(<-got, body) {
				t.Error("the bytes differ")
			}
			if tr := r.d.Stats().Traffic; tr.Spliced != uint64(len(body)) || tr.BytesRx != 0 || tr.BytesTx != 0 {
				t.Errorf("traffic %+v, want %d spliced and nothing else", tr, len(body))
			}
		})
	}
}

// A hold that ends gives the host the rest, from where the moves stopped.
func TestHoldEnds(t *testing.T) {
	_, _, a, b, source, sink := relayRig(t)
	body := pattern(6, 800<<10)
	a.hold()
	go func() { _, _ = source.Write(body) }()
	at := 0
	for i := range 4 {
		n := 20 << 10
		a.moveAll(b, n, 7000)
		expect(t, sink, body[at:at+n])
		at += n
		a.letGo()
		got, err := a.readN(n)
		if err != nil || !bytes.Equal(got, body[at:at+n]) {
			t.Fatalf("round %d: data after the hold differs, %v", i, err)
		}
		at += n
		before := a.hold()
		if !bytes.Equal(before, body[at:at+len(before)]) {
			t.Fatalf("round %d: data before the hold differs", i)
		}
		at += len(before)
	}
}

// More than a window may be on hold, and be moved at once; what then has to
// cross goes by windows.
func TestHoldOfMuch(t *testing.T) {
	_, _, a, b, source, sink := relayRig(t)
	body := pattern(11, 3<<20)
	a.hold()
	go func() { _, _ = source.Write(body) }()
	a.awaitHeld(1 << 20)
	if k := a.move(b, 700<<10); k != 700<<10 {
		t.Fatalf("moved %d at once", k)
	}
	expect(t, sink, body[:700<<10])
	a.awaitHeld(700<<10 + 1<<20)
	a.letGo()
	for at := 700 << 10; at < len(body); {
		n := min(100<<10, len(body)-at)
		got, err := a.readN(n)
		if err != nil || !bytes.Equal(got, body[at:at+n]) {
			t.Fatalf("data at %d differs, %v", at, err)
		}
		at += n
	}
}

// Who has a connection on hold and shares it gets its data, whatever it meant.
func TestHoldOfShared(t *testing.T) {
	_, h, a, _, source, _ := relayRig(t)
	body := pattern(12, 30<<10)
	a.hold()
	if _, err := source.Write(body); err != nil {
		t.Fatal(err)
	}
	a.awaitHeld(uint64(len(body)))
	h.request(a.shard, offload.OpShared, a.handle, uint32(a.consumed), make([]byte, offload.ForkReqSize))
	got, err := a.readN(len(body))
	if err != nil || !bytes.Equal(got, body) {
		t.Errorf("data differs, %v", err)
	}
}

// The end of the stream is told with what is on hold, and a reset leaves it.
func TestHoldOverEnd(t *testing.T) {
	for _, reset := range []bool{false, true} {
		name := map[bool]string{false: "end", true: "reset"}[reset]
		t.Run(name, func(t *testing.T) {
			_, h, a, b, source, sink := relayRig(t)
			body := pattern(7, 30<<10)
			a.hold()
			if _, err := source.Write(body); err != nil {
				t.Fatal(err)
			}
			a.awaitHeld(uint64(len(body)))
			if reset {
				// What is closed with bytes unread is reset.
				if err := a.write([]byte("ab")); err != nil {
					t.Fatal(err)
				}
				expect(t, source, []byte("a"))
				_ = source.Close()
				h.until("error", func() bool { return a.errno != 0 })
			} else {
				_ = source.Close()
				h.until("end", func() bool { return a.fin })
			}
			a.moveAll(b, 10<<10, 4000)
			expect(t, sink, body[:10<<10])
			// The host may also want the rest itself.
			a.letGo()
			h.until("the rest", func() bool { return len(a.rx) >= 20<<10 })
			h.do(func() {
				if !bytes.Equal(a.rx, body[10<<10:]) {
					t.Errorf("after the %s the data differs", name)
				}
				a.consumed += uint64(len(a.rx))
			})
			a.close(0)
			if err := b.write([]byte("goes on")); err != nil {
				t.Fatal(err)
			}
			expect(t, sink, []byte("goes on"))
		})
	}
}

// A record that counts bytes as consumed may be read before the Move that sends
// them: they come by different rings.
func TestMoveBehind(t *testing.T) {
	_, h, a, b, source, sink := relayRig(t)
	h.openChannel(1)
	h.do(func() {
		b.channel = 1
		b.emit(offload.OpClaim, 0, 0, 0, nil)
	})
	h.until("claimed", func() bool { return b.claimed != nil })
	body := pattern(8, 20<<10)
	a.hold()
	if _, err := source.Write(body); err != nil {
		t.Fatal(err)
	}
	a.awaitHeld(uint64(len(body)))
	h.do(func() {
		end := uint32(len(body))
		a.emit(offload.OpSend, 0, 0, end-5000, []byte("answer"))
		a.emit(offload.OpHold, 0, 0, end, nil)
		a.emit(offload.OpClose, 0, 6, end, nil)
	})
	// The order in which the rings are read is the DPU's: give it time to go
	// wrong. Nothing may be sent, and nothing ended, before the moves.
	_ = source.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := source.Read(make([]byte, 10)); n > 0 || err == io.EOF {
		t.Fatalf("read %d bytes, %v, before the moves", n, err)
	}
	_ = source.SetReadDeadline(time.Now().Add(20 * time.Second))
	if k := a.move(b, 15<<10); k != 15<<10 {
		t.Fatalf("moved %d", k)
	}
	if k := a.move(b, 5<<10); k != 5<<10 {
		t.Fatalf("moved %d", k)
	}
	expect(t, sink, body)
	expect(t, source, []byte("answer"))
	if _, err := source.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("after the close: %v, want the end", err)
	}
}

// A host that goes away with bytes on hold leaves nothing behind.
func TestHoldOrphans(t *testing.T) {
	r, h, a, _, source, _ := relayRig(t)
	a.hold()
	if _, err := source.Write(pattern(9, 10<<10)); err != nil {
		t.Fatal(err)
	}
	a.awaitHeld(10 << 10)
	h.kill()
	if _, err := source.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Errorf("unread data at the end: %v, want a reset", err)
	}
	for end := time.Now().Add(10 * time.Second); r.d.Stats().Sockets.Open > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("sockets left: %+v", r.d.Sockets())
		}
	}
}

// Nobody is woken to hear that what was moved is taken: that goes along with
// what comes next. Until then there is room for more than a window of it, for
// what is sent, too.
func TestMovedIsAcknowledgedInCompany(t *testing.T) {
	_, h, a, b, source, sink := relayRig(t)
	body := pattern(13, 300<<10)
	a.hold()
	go func() { _, _ = source.Write(body) }()
	a.moveAll(b, len(body), 1<<17)
	expect(t, sink, body)
	// Its answer comes after whatever there was to say before it. What was told
	// between the moves may have acknowledged those, but not the last.
	h.request(a.shard, offload.OpGetOpt, offload.HandleHost|0xfffff, 0, make([]byte, offload.OptValSize))
	h.do(func() {
		if b.taken == b.tx {
			t.Errorf("all of %d moved bytes are acknowledged by themselves", b.tx)
		}
	})
	window := int(h.l.TxWindow)
	sent := pattern(14, 3*window)
	for at := 0; at < len(sent); at += window / 8 {
		h.do(func() {
			part := sent[at : at+window/8]
			if !b.emit(offload.OpSend, 0, uint32(b.tx), uint32(b.consumed), part) {
				t.Error("the ring is full")
			}
			b.tx += uint64(len(part))
		})
		expect(t, sink, sent[at:at+window/8])
	}
	// Half of the window is worth a record, in company.
	more := pattern(16, offload.MoveWindow/2)
	go func() { _, _ = source.Write(more) }()
	a.moveAll(b, len(more), 1<<17)
	expect(t, sink, more)
	if _, err := source.Write(body[:1000]); err != nil {
		t.Fatal(err)
	}
	a.awaitHeld(uint64(len(body)+len(more)) + 1000)
	h.until("the acknowledgement", func() bool { return b.tx-b.taken < offload.MoveWindow/2 })
}

// Who has filled his window with moves is told of room without anything else.
func TestMovedWindowOpens(t *testing.T) {
	_, h, a, b, source, sink := relayRig(t)
	body := pattern(15, 16<<20)
	a.hold()
	go func() { _, _ = source.Write(body) }()
	n, full := 0, func() (yes bool) {
		h.do(func() { yes = b.tx-b.taken == offload.MoveWindow })
		return
	}
	for !full() {
		a.awaitHeld(uint64(n) + 1)
		n += a.move(b, 1<<20)
	}
	got := make(chan []byte)
	go func() {
		all := make([]byte, len(body))
		n, _ := io.ReadFull(sink, all)
		got <- all[:n]
	}()
	// The rest goes only if there is, again and again.
	h.until("room", func() bool { return b.tx-b.taken <= offload.MoveWindow-uint64(h.l.TxWindow)/4 })
	a.moveAll(b, len(body)-n, 1<<20)
	if !bytes.Equal(<-got, body) {
		t.Error("the bytes differ")
	}
}

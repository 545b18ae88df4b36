// SPDX-License-Identifier: Apache-2.0

package netstack

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// dialogue is a stack with one accepted connection, waitingOne, whose peer is the
// test: its next byte is peerNext.
type dialogue struct {
	t        testing.TB
	s        *Stack
	port     *Endpoint
	ep       tcpip.Endpoint
	now      int64
	sequence uint32 // of the stack's next byte
	got      []byte
	ended    bool
	woken    atomic.Int32 // times that the stack woke the loop
}

const peerNext = uint32(5000)

func accepted(t testing.TB) *dialogue {
	t.Helper()
	s, port := onePort(t)
	d := &dialogue{t: t, s: s, port: port, now: int64(time.Second)}
	port.wake = func() { d.woken.Add(1) }
	peer := tcpip.AddrFrom4(waitingOne.peer)
	if err := s.AddStaticNeighbor(1, header.IPv4ProtocolNumber, peer, tcpip.LinkAddress(peerMAC[:])); err != nil {
		t.Fatal(err)
	}
	l := listening(t, s, "0.0.0.0:80")
	port.Deliver(d.frame(syn, peerNext-1, nil))
	d.sequence = d.answer(func(h header.TCP) bool { return h.Flags() == syn|ack }).SequenceNumber() + 1
	port.Deliver(d.frame(ack, peerNext, nil))
	d.until("the connection is accepted", func() bool {
		ep, _, err := l.Accept(nil)
		d.ep = ep
		return err == nil
	})
	t.Cleanup(d.ep.Close)
	s.Track(d.ep, l)
	return d
}

// frame makes a segment of the peer's that acknowledges all that there is.
func (d *dialogue) frame(flags header.TCPFlags, seq uint32, payload []byte) []byte {
	f := segment(flags, seq, 0, 0)
	h := header.TCP(f[ethLen+ipv4Len:])
	h.SetAckNumber(d.sequence)
	h.SetWindowSize(60000)
	return withPayload(f, payload)
}

// until waits for what the stack's own goroutine does.
func (d *dialogue) until(what string, done func() bool) {
	d.t.Helper()
	for end := time.Now().Add(20 * time.Second); !done(); time.Sleep(50 * time.Microsecond) {
		if time.Now().After(end) {
			d.t.Fatalf("%s: not within 20 s", what)
		}
		d.tick(ackDelay)
	}
}

// tick lets time pass for the loop.
func (d *dialogue) tick(by int64) {
	d.now += by
	d.s.Tick(d.now)
}

// answer waits for a segment of the stack's.
func (d *dialogue) answer(like func(header.TCP) bool) (h header.TCP) {
	d.t.Helper()
	d.until("an answer", func() bool {
		h = d.answered(like)
		return h != nil
	})
	return h
}

// answered looks for a segment of the stack's.
func (d *dialogue) answered(like func(header.TCP) bool) (h header.TCP) {
	for _, f := range drained(d.port) {
		if g, ok := parse(f); ok && g.sound() && like(g.tcp()) {
			h = g.tcp()
		}
	}
	return h
}

// read takes what the application would.
func (d *dialogue) read() {
	var b bytes.Buffer
	for {
		_, err := d.ep.Read(&b, tcpip.ReadOptions{})
		if _, d.ended = err.(*tcpip.ErrClosedForReceive); err != nil {
			break
		}
	}
	d.got = append(d.got, b.Bytes()...)
}

// leave has the host close the connection, which goes as far as our FIN.
func (d *dialogue) leave() {
	d.t.Helper()
	d.s.Leave(d.ep)
	d.ep.Close()
	d.answer(func(h header.TCP) bool { return h.Flags()&fin != 0 })
	d.sequence++
}

// A connection whose peer takes its time to close is a record in TIME-WAIT like any
// other, and one that knows what came last.
func TestTimeWaitOfASlowPeer(t *testing.T) {
	d := accepted(t)
	d.leave()
	d.port.Deliver(d.frame(ack, peerNext, nil))
	ep := d.ep.(*tcp.Endpoint)
	d.until("the FIN is acknowledged", func() bool { return ep.EndpointState() == tcp.StateFinWait2 })
	for range 5 {
		d.tick(2 * leaveDelay)
	}
	waits := func() uint64 { n, _, _ := d.s.flows.timeWaiting(); return n }
	for range 3 { // the acknowledgement is lost
		// A FIN that comes as the endpoint ends is lost on our side: the peer sends it again.
		told := false
		d.until("an answer, and a record", func() bool {
			d.port.Deliver(d.frame(ack|fin, peerNext, nil))
			told = told || d.answered(func(h header.TCP) bool { return h.AckNumber() == peerNext+1 && h.SequenceNumber() == d.sequence }) != nil
			return told && waits() == 1 && ep.EndpointState() == tcp.StateClose
		})
	}
	d.tick(leaveDelay)
	if fs := d.s.flows; len(fs.left)+len(fs.last) != 0 || len(fs.table) != 0 {
		t.Errorf("%d and %d in line, %d in the table", len(fs.left), len(fs.last), len(fs.table))
	}
}

// A connection that stays an endpoint through TIME-WAIT, since its timer was not
// recognised, must not be taken for another one that comes to it.
func TestTimeWaitIsNotTakenForAnothers(t *testing.T) {
	d := accepted(t)
	d.leave()
	fs := d.s.flows
	fs.mu.Lock()
	fl := fs.table[waitingOne]
	fl.accepted, fs.waits.last = false, nil // so that its timer runs
	fs.mu.Unlock()
	d.port.Deliver(d.frame(ack|fin, peerNext, nil))
	d.answer(func(h header.TCP) bool { return h.AckNumber() == peerNext+1 })
	d.until("TIME-WAIT", func() bool { return d.ep.(*tcp.Endpoint).EndpointState() == tcp.StateTimeWait })
	fs.mu.Lock()
	fl.accepted = true
	fs.mu.Unlock()
	d.port.Deliver(d.frame(ack|fin, peerNext, nil)) // it sends once more
	d.answer(func(h header.TCP) bool { return h.AckNumber() == peerNext+1 })
	if fs.inTimeWait(func() { t.Error("another one was ended") }) {
		t.Error("taken for the one that comes to TIME-WAIT")
	}
}

const longest = 30000 // of the streams below: less than the first window

// script makes a batch of segments out of noise, and what is to be received.
func script(d *dialogue, noise []byte) (frames [][]byte, want []byte, wrong int, end bool) {
	stream := make([]byte, longest)
	for i := range stream {
		stream[i] = byte(i*7) ^ byte(i>>8)
	}
	var have [longest]bool
	next := 0
	for ; len(noise) >= 4 && len(frames) < 60; noise = noise[4:] {
		how, n := noise[0], 1+int(binary.LittleEndian.Uint16(noise[1:]))%1448
		at := next
		if how&3 == 3 { // again, or with a gap
			at = max(0, next-1500+int(noise[3])*12)
		}
		if at+n > longest {
			break
		}
		flags := ack
		switch how >> 2 & 7 {
		case 1:
			flags |= header.TCPFlagPsh
		case 2:
			flags |= header.TCPFlagUrg
		case 3:
			flags |= 0xc0 // ECE, CWR
		}
		f := d.frame(flags, peerNext+uint32(at), stream[at:at+n])
		switch how >> 5 {
		case 1: // damaged
			f[len(f)-1] ^= 0x55
			wrong++
		case 2: // another window
			header.TCP(f[ethLen+ipv4Len:]).SetWindowSize(59999)
			f = withPayload(f[:len(f)-n], stream[at:at+n])
		case 3: // only an acknowledgement between
			frames = append(frames, f, d.frame(ack, peerNext+uint32(at+n), nil))
			f = nil
		}
		if f != nil {
			frames = append(frames, f)
		}
		if how>>5 != 1 {
			for i := at; i < at+n; i++ {
				have[i] = true
			}
		}
		next = at + n
	}
	whole := 0
	for whole < longest && have[whole] {
		whole++
	}
	if len(noise) > 0 && noise[0]&1 == 0 {
		end = true
		frames = append(frames, d.frame(ack|fin, peerNext+uint32(whole), nil))
	}
	return frames, stream[:whole], wrong, end
}

// FuzzReceived holds that segments which go through the stack as one are received
// as they are one by one: the same bytes, the same end, the same counters.
func FuzzReceived(f *testing.F) {
	f.Add([]byte("\x00\xa7\x05\x00\x00\xa7\x05\x00\x04\x10\x00\x00\x00\xa7\x05\x00\x20\xa7\x05\x00\x03\xa7\x05\x02\x00\xa7\x05\x00"))
	f.Add(bytes.Repeat([]byte{0, 0xa7, 5, 0}, 30))
	f.Add(bytes.Repeat([]byte{0, 0xa7, 1, 0, 3, 0x20, 2, 200, 0x60, 1, 0, 0, 0x0c, 9, 0, 0}, 9))
	f.Fuzz(received)
}

func TestReceived(t *testing.T) {
	for range 40 {
		noise := make([]byte, 4*rand.IntN(60))
		for i := range noise {
			noise[i] = byte(rand.Uint32())
			if i%4 == 0 && rand.IntN(3) > 0 {
				noise[i] = 0 // what follows at once
			}
		}
		if received(t, noise); t.Failed() {
			t.Fatalf("the noise was %q", noise)
		}
	}
}

// received has a script played twice: as one batch, and one by one.
func received(t *testing.T, noise []byte) {
	for _, together := range []bool{true, false} {
		d := accepted(t)
		before := d.s.Stats().TCP.ValidSegmentsReceived.Value()
		frames, want, bad, end := script(d, noise)
		if together {
			d.port.Deliver(frames...)
		} else {
			for _, f := range frames {
				d.port.Deliver(f)
			}
		}
		for _, f := range frames { // the device takes them back
			clear(f)
		}
		d.until("all is received", func() bool {
			d.read()
			return len(d.got) >= len(want) && d.ended == end
		})
		if !bytes.Equal(d.got, want) {
			t.Errorf("%d bytes received, want %d, or they differ", len(d.got), len(want))
		}
		if n := d.s.Stats().TCP.ChecksumErrors.Value(); n != uint64(bad) {
			t.Errorf("%d checksum errors, want %d", n, bad)
		}
		if n := d.s.Stats().TCP.ValidSegmentsReceived.Value() - before; n != uint64(len(frames)-bad) {
			t.Errorf("%d segments received, want %d", n, len(frames)-bad)
		}
		d.s.Close()
	}
}

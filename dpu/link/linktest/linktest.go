// SPDX-License-Identifier: Apache-2.0

// Package linktest is the conformance suite of the link seam: whatever
// implements link.Device runs it over a pair of devices joined by a wire.
//
// The frames are IPv4/UDP between the two devices' own hardware addresses and
// carry a sequence number and a pattern; anything else on the wire (a kernel's
// neighbour discovery, for one) is ignored. All calls are made from the test's
// goroutine, which therefore owns every queue of both devices.
package linktest

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pno/dpu/link"
)

// Open makes a fresh pair of connected devices, closed again by t.Cleanup.
type Open func(t *testing.T) (a, b link.Device)

// patience bounds every wait of the suite.
const patience = 20 * time.Second

// Run exercises the whole contract of package link over pairs made by open.
func Run(t *testing.T, open Open) {
	for _, c := range []struct {
		name string
		run  func(*testing.T, *port, *port)
	}{
		{"Identity", testIdentity},
		{"RoundTrip", testRoundTrip},
		{"Sizes", testSizes},
		{"Batch", testBatch},
		{"HoldUntilRelease", testHoldUntilRelease},
		{"HoldEverything", testHoldEverything},
		{"TxFull", testTxFull},
		{"BadCommit", testBadCommit},
		{"Readiness", testReadiness},
		{"Stats", testStats},
		{"NoAllocations", testNoAllocations},
		{"Close", testClose},
		{"PeerClosed", testPeerClosed},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, b := open(t)
			c.run(t, newPort(t, a), newPort(t, b))
		})
	}
}

// port drives one device. It sends on the first queue and receives on all of
// them, since which queue a frame arrives on is the device's business.
type port struct {
	t      testing.TB
	dev    link.Device
	tx     link.Queue
	frames [][]byte
	fds    []unix.PollFd
}

func newPort(t testing.TB, d link.Device) *port {
	t.Helper()
	queues := d.Queues()
	if len(queues) == 0 {
		t.Fatalf("%s has no queue", d.Name())
	}
	p := &port{t: t, dev: d, tx: queues[0], frames: make([][]byte, 64)}
	for _, q := range queues {
		p.fds = append(p.fds, unix.PollFd{Fd: int32(q.FD()), Events: unix.POLLIN})
	}
	return p
}

// commit puts one frame on the transmit queue, or reports that it is full.
func (p *port) commit(to *port, seq uint32, size int) bool {
	buf := p.tx.TxAlloc()
	if buf == nil {
		return false
	}
	if room := p.dev.MTU() + headerLen; len(buf) < room {
		p.t.Fatalf("TxAlloc returned %d bytes, want at least %d", len(buf), room)
	}
	encode(buf[:size], p.dev.MAC(), to.dev.MAC(), seq)
	p.tx.TxCommit(size)
	return true
}

func (p *port) flush() {
	if err := p.tx.Flush(); err != nil {
		p.t.Fatalf("Flush: %v", err)
	}
}

// drain flushes until the device has taken every committed frame.
func (p *port) drain() {
	for end := time.Now().Add(patience); ; {
		p.flush()
		if !p.tx.TxPending() {
			return
		}
		if time.Now().After(end) {
			p.t.Fatalf("%s still has frames pending after %v", p.dev.Name(), patience)
		}
	}
}

// send transmits one frame, waiting for room.
func (p *port) send(to *port, seq uint32, size int) {
	for end := time.Now().Add(patience); !p.commit(to, seq, size); {
		p.flush()
		if time.Now().After(end) {
			p.t.Fatalf("%s: no room to transmit for %v", p.dev.Name(), patience)
		}
	}
	p.drain()
}

// poll receives what is there now, hands each of the suite's frames to fn and
// releases them. It returns how many came from the device, of whatever kind.
func (p *port) poll(fn func(seq uint32, size int)) int {
	total := 0
	for _, q := range p.dev.Queues() {
		n, err := q.Recv(p.frames)
		if err != nil {
			p.t.Fatalf("Recv: %v", err)
		}
		for _, f := range p.frames[:n] {
			seq, ours, err := decode(f, p.dev.MAC())
			if err != nil {
				p.t.Fatalf("%s received a damaged frame: %v", p.dev.Name(), err)
			}
			if ours {
				fn(seq, len(f))
			}
		}
		q.Release()
		total += n
	}
	return total
}

// expect receives until want of the suite's frames have come, and fails when
// they do not come, or more do.
func (p *port) expect(want int, fn func(i int, seq uint32, size int)) {
	p.t.Helper()
	got := 0
	for end := time.Now().Add(patience); got < want; {
		if p.poll(func(seq uint32, size int) { fn(got, seq, size); got++ }) == 0 {
			if time.Now().After(end) {
				p.t.Fatalf("%s received %d of %d frames in %v", p.dev.Name(), got, want, patience)
			}
			p.wait(time.Millisecond)
		}
	}
	if got != want {
		p.t.Fatalf("%s received %d frames, want %d", p.dev.Name(), got, want)
	}
}

// quiet receives until nothing has come for a moment.
func (p *port) quiet(fn func(seq uint32, size int)) {
	for idle := 0; idle < 5; idle++ {
		if p.poll(fn) > 0 {
			idle = 0
		}
		p.wait(2 * time.Millisecond)
	}
}

// wait sleeps until a queue is readable, and tells whether one is.
func (p *port) wait(d time.Duration) bool {
	for end := time.Now().Add(d); ; {
		n, err := unix.Poll(p.fds, int(max(0, time.Until(end).Milliseconds())))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			p.t.Fatalf("poll %s: %v", p.dev.Name(), err)
		}
		return n > 0
	}
}

func ignore(uint32, int) {}

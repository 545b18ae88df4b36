// SPDX-License-Identifier: Apache-2.0

package netstack

import (
	"bytes"
	"math"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// head changes what the connection knows of its headers.
func (d *dialogue) head(change func(*pattern)) {
	fs := d.s.flows
	fs.mu.Lock()
	defer fs.mu.Unlock()
	change(&fs.table[waitingOne].head)
}

func (d *dialogue) write(n int) {
	d.t.Helper()
	if _, err := d.ep.Write(bytes.NewReader(bytes.Repeat([]byte("pno"), n)[:n]), tcpip.WriteOptions{}); err != nil {
		d.t.Fatal(err)
	}
}

// long is how many packets have gone the long way.
func (d *dialogue) long() uint64 { return d.s.NICInfo()[1].Stats.Tx.Packets.Value() }

func (d *dialogue) set(o tcpip.SockOptInt, v int) {
	d.t.Helper()
	if err := d.ep.SetSockOptInt(o, v); err != nil {
		d.t.Fatal(err)
	}
}

// A segment that takes the short way is, byte for byte, what the long way makes
// of it; and what would not be, does not take it.
func TestOutlet(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*dialogue)
		size   int
		short  bool
	}{
		{"as before", func(*dialogue) {}, 64, true},
		{"a frame", func(*dialogue) {}, 1448, true},
		{"many frames", func(*dialogue) {}, 20000, true},
		{"another type of service", func(d *dialogue) { d.set(tcpip.IPv4TOSOption, 16) }, 64, false},
		{"another time to live", func(d *dialogue) { d.set(tcpip.IPv4TTLOption, 9) }, 64, false},
		{"may be fragmented", func(d *dialogue) { d.set(tcpip.MTUDiscoverOption, int(tcpip.PMTUDiscoveryDont)) }, 64, false},
		{"long ago", func(d *dialogue) { d.head(func(h *pattern) { h.until = 0 }) }, 64, false},
		{"another hardware address", func(d *dialogue) {
			d.head(func(h *pattern) { h.until = 0 })
			err := d.s.AddStaticNeighbor(1, header.IPv4ProtocolNumber, tcpip.AddrFrom4(waitingOne.peer), "\x02\x09\x08\x07\x06\x05")
			if err != nil {
				d.t.Fatal(err)
			}
		}, 64, false},
		{"has left", func(d *dialogue) { d.s.Leave(d.ep) }, 64, false},
		{"is not tracked", func(d *dialogue) { d.s.Untrack(d.ep) }, 64, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var sent [2][][]byte
			for i, forget := range []bool{false, true} {
				d := accepted(t)
				d.write(10)
				drained(d.port)
				d.head(func(h *pattern) {
					if h.port == nil {
						t.Fatal("the first segment has taught nothing")
					}
					h.until = math.MaxInt64 // however long this takes
					if forget {
						h.port = nil
					}
				})
				c.change(d)
				before, packets := d.long(), d.s.Stats().IP.PacketsSent.Value()
				d.write(c.size)
				sent[i] = drained(d.port)
				if short := d.long() == before; short != (c.short && !forget) {
					t.Errorf("forgotten %v: it took the short way: %v", forget, short)
				}
				if n := d.s.Stats().IP.PacketsSent.Value() - packets; n != uint64(len(sent[i])) {
					t.Errorf("forgotten %v: %d packets are counted for %d frames", forget, n, len(sent[i]))
				}
				for _, f := range sent[i] {
					g, ok := parse(f)
					if !ok || !g.sound() {
						t.Fatalf("forgotten %v: a frame is wrong: % x", forget, f)
					}
					h := header.TCP(g.tcp())
					h.SetSequenceNumber(h.SequenceNumber() - d.sequence) // each begins elsewhere
					h.SetChecksum(0)
					if ip := header.IPv4(f[ethLen:]); ip.Flags()&header.IPv4FlagDontFragment == 0 {
						ip.SetID(0) // drawn
						ip.SetChecksum(0)
					}
				}
			}
			if len(sent[0]) == 0 || len(sent[0]) != len(sent[1]) {
				t.Fatalf("%d and %d frames", len(sent[0]), len(sent[1]))
			}
			for i := range sent[0] {
				if !bytes.Equal(sent[0][i], sent[1][i]) {
					t.Errorf("frame %d by the short and the long way:\n% x\n% x", i, sent[0][i], sent[1][i])
				}
			}
		})
	}
}

// An acknowledgement that is held back has no headers yet. It gets them when it
// goes, for whatever reason that is.
func TestHeldWithoutHeaders(t *testing.T) {
	for _, c := range []struct {
		name string
		goes func(*dialogue)
	}{
		{"its time has come", func(d *dialogue) { d.tick(ackDelay) }},
		{"the connection is not tracked any more", func(d *dialogue) { d.s.Untrack(d.ep) }},
		{"the headers are not known any more", func(d *dialogue) {
			d.head(func(h *pattern) { h.port = nil })
			d.tick(ackDelay)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := accepted(t)
			d.write(10)
			drained(d.port)
			d.head(func(h *pattern) { h.until = math.MaxInt64 })
			fs := d.s.flows
			before := d.long()
			d.woken.Store(0)
			d.port.Deliver(d.frame(ack, peerNext, []byte("request")))
			held := func() bool {
				fs.mu.Lock()
				defer fs.mu.Unlock()
				fl := fs.table[waitingOne]
				return fl.held != nil && fl.held.NetworkProtocolNumber == 0
			}
			for end := time.Now().Add(20 * time.Second); !held(); time.Sleep(50 * time.Microsecond) { // the loop's clock stands still
				if time.Now().After(end) {
					t.Fatal("nothing is held back within 20 s")
				}
			}
			queued := func() int32 { // each of which wakes the loop as well
				d.port.mu.Lock()
				defer d.port.mu.Unlock()
				return int32(len(d.port.queue))
			}
			for end := time.Now().Add(20 * time.Second); d.woken.Load() <= queued(); time.Sleep(50 * time.Microsecond) {
				if time.Now().After(end) {
					t.Fatal("the loop does not learn that something is held back")
				}
			}
			c.goes(d)
			frames := drained(d.port)
			if len(frames) != 1 {
				t.Fatalf("%d frames, want 1", len(frames))
			}
			g, ok := parse(frames[0])
			if h := header.TCP(g.tcp()); !ok || !g.sound() || h.AckNumber() != peerNext+7 || string(frames[0][:6]) != string(peerMAC[:]) {
				t.Errorf("% x", frames[0])
			}
			if d.long() != before {
				t.Error("it took the long way")
			}
		})
	}
}

// SPDX-License-Identifier: Apache-2.0

package netstack

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

var (
	ourMAC, peerMAC = [6]byte{2, 0, 0, 0, 0, 1}, [6]byte{2, 0, 0, 0, 0, 2}
	waitingOne      = flowKey{[4]byte{198, 18, 0, 2}, [4]byte{198, 18, 0, 9}, 80, 30000}
)

// onePort is a stack with the address 198.18.0.2/24, and its port.
func onePort(t testing.TB) (*Stack, *Endpoint) {
	t.Helper()
	ep := NewEndpoint(ourMAC, 1500, func() {})
	s, err := New(Options{Ports: []Port{{
		Name: "eth0", Endpoint: ep, Addresses: []netip.Prefix{netip.MustParsePrefix("198.18.0.2/24")},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s, ep
}

// waitingStack is a stack with a connection in TIME-WAIT: waitingOne, which
// expects 2000 and would send 1000.
func waitingStack(t *testing.T, stamped bool) (*Stack, *Endpoint) {
	t.Helper()
	s, ep := onePort(t)
	s.Tick(int64(time.Second))
	s.flows.waits.add(waitingOne, timeWait{
		until: int64(3 * time.Second), seq: 1000, ack: 2000, window: 77, stamped: stamped, shift: 5, recent: 40,
	})
	return s, ep
}

// segment makes a frame of waitingOne's peer.
func segment(flags header.TCPFlags, seq uint32, stamp uint32, payload int) []byte {
	size := tcpLen
	if stamp != 0 {
		size += 12
	}
	f := make([]byte, ethLen+ipv4Len+size+payload)
	header.Ethernet(f).Encode(&header.EthernetFields{
		SrcAddr: tcpip.LinkAddress(peerMAC[:]), DstAddr: tcpip.LinkAddress(ourMAC[:]), Type: header.IPv4ProtocolNumber,
	})
	ip := header.IPv4(f[ethLen:])
	ip.Encode(&header.IPv4Fields{
		TotalLength: uint16(len(ip)), TTL: 64, Protocol: uint8(header.TCPProtocolNumber),
		SrcAddr: tcpip.AddrFrom4(waitingOne.peer), DstAddr: tcpip.AddrFrom4(waitingOne.local),
	})
	ip.SetChecksum(^ip.CalculateChecksum())
	h := header.TCP(ip[ipv4Len:])
	h.Encode(&header.TCPFields{
		SrcPort: waitingOne.peerPort, DstPort: waitingOne.localPort, SeqNum: seq, AckNum: 1000,
		DataOffset: uint8(size), Flags: flags, WindowSize: 1000,
	})
	if stamp != 0 {
		n := header.EncodeNOP(h[tcpLen:])
		n += header.EncodeNOP(h[tcpLen+n:])
		header.EncodeTSOption(stamp, 9, h[tcpLen+n:])
	}
	sum := checksum.Checksum(ip[12:20], uint16(header.TCPProtocolNumber))
	binary.BigEndian.PutUint16(h[header.TCPChecksumOffset:], ^checksum.Checksum(h, checksum.Combine(sum, uint16(len(h)))))
	return f
}

const (
	syn, ack, fin, rst = header.TCPFlagSyn, header.TCPFlagAck, header.TCPFlagFin, header.TCPFlagRst
)

func TestTimeWaitAnswers(t *testing.T) {
	for _, c := range []struct {
		name    string
		flags   header.TCPFlags
		seq     uint32
		stamp   uint32 // 0: the connection has no timestamps
		payload int
		answer  bool // with an acknowledgement
		left    bool // goes on to the stack
		renewed bool
	}{
		{"the FIN again", ack | fin, 1999, 0, 0, true, false, true},
		{"the FIN again, stamped", ack | fin, 1999, 41, 0, true, false, true},
		{"the last data again, with the FIN", ack | fin, 1989, 0, 10, true, false, true},
		{"old data", ack, 1900, 0, 10, true, false, false},
		{"data after the FIN", ack, 2000, 0, 10, true, false, false},
		{"an old acknowledgement", ack, 1990, 0, 0, true, false, false},
		{"the last acknowledgement", ack, 2000, 0, 0, false, false, false},
		{"a reset", rst, 2000, 0, 0, false, false, false},
		{"a reset with an acknowledgement", rst | ack, 2000, 0, 0, false, false, false},
		{"an old SYN", syn, 1500, 0, 0, false, false, false},
		{"an old SYN, stamped", syn, 1500, 39, 0, false, false, false},
		{"a new connection", syn, 2001, 0, 0, false, true, false},
		{"a new connection by its timestamp", syn, 1500, 41, 0, false, true, false},
		{"an answer to a SYN", syn | ack, 2001, 0, 0, false, false, false},
		{"neither ACK nor SYN", fin, 1999, 0, 0, false, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, ep := waitingStack(t, c.stamp != 0)
			ep.Deliver(segment(c.flags, c.seq, c.stamp, c.payload))
			w := s.flows.waits.get(waitingOne)
			if (w == nil) != c.left {
				t.Errorf("the record: %+v", w)
			}
			if c.left {
				return
			}
			if renewed := w.until == int64(time.Second)+int64(s.clock.timeWait); renewed != c.renewed {
				t.Errorf("renewed: %v", renewed)
			}
			out := drained(ep)
			if got := len(out) > 0; got != c.answer {
				t.Fatalf("answered: %v", got)
			}
			if c.answer {
				checkAnswer(t, out[0], c.stamp)
			}
		})
	}
}

// drained is what a port has to send.
func drained(ep *Endpoint) [][]byte {
	out := recorder{room: 1000, size: 2048}
	ep.Drain(&out)
	return out.frames
}

// Two ends that expect different things must not acknowledge each other for ever,
// and whose data or FIN is not acknowledged sends it again: that one is told each
// time.
func TestTimeWaitDoesNotEcho(t *testing.T) {
	for _, c := range []struct {
		name    string
		flags   header.TCPFlags
		seq     uint32
		payload int
		answers int // to ten of them, of which the last five come echoEvery later
	}{
		{"acknowledgements", ack, 1990, 0, 2},
		{"from the future", ack, 2010, 0, 2},
		{"the FIN", ack | fin, 1999, 0, 10},
		{"data", ack, 1900, 10, 10},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, ep := waitingStack(t, false)
			s.flows.waits.get(waitingOne).until = int64(time.Minute)
			answers := 0
			for i := range int64(10) {
				s.Tick(int64(time.Second) + i*echoEvery*int64(time.Millisecond)/5)
				ep.Deliver(segment(c.flags, c.seq, 0, c.payload))
				answers += len(drained(ep))
			}
			if answers != c.answers {
				t.Errorf("%d answers, want %d", answers, c.answers)
			}
			if _, _, skipped := s.flows.timeWaiting(); skipped != uint64(10-c.answers) {
				t.Errorf("%d are counted as not answered, want %d", skipped, 10-c.answers)
			}
		})
	}
}

func checkAnswer(t *testing.T, f []byte, stamp uint32) {
	t.Helper()
	if [6]byte(f[:6]) != peerMAC || [6]byte(f[6:12]) != ourMAC {
		t.Errorf("from % x to % x", f[6:12], f[:6])
	}
	copy(f, ourMAC[:]) // parse does not mind
	g, ok := parse(f)
	if !ok || !g.sound() {
		t.Fatalf("a bad frame: % x", f)
	}
	if k := (flowKey{waitingOne.peer, waitingOne.local, waitingOne.peerPort, waitingOne.localPort}); g.key != k {
		t.Errorf("sent to %v", g.key)
	}
	h := header.TCP(g.tcp())
	if h.Flags() != ack || h.SequenceNumber() != 1000 || h.AckNumber() != 2000 || h.WindowSize() != 77 {
		t.Errorf("%v, sequence %d, acknowledges %d, window %d", h.Flags(), h.SequenceNumber(), h.AckNumber(), h.WindowSize())
	}
	o := header.ParseTCPOptions(h.Options())
	if o.TS != (stamp != 0) || o.TS && (o.TSVal != 1000+5 || o.TSEcr != max(stamp, 40)) {
		t.Errorf("timestamps %+v", o)
	}
}

// What was damaged on the way must neither end a TIME-WAIT nor be answered.
func TestTimeWaitChecksums(t *testing.T) {
	for _, flags := range []header.TCPFlags{syn, ack | fin} {
		s, ep := waitingStack(t, false)
		f := segment(flags, 2500, 0, 0)
		f[len(f)-1] ^= 1
		ep.Deliver(f)
		out := drained(ep)
		if n := s.Stats().TCP.ChecksumErrors.Value(); len(s.flows.waits.table) != 1 || len(out) != 0 || n != 1 {
			t.Errorf("%v: %d in TIME-WAIT, %d answers, %d checksum errors", flags, len(s.flows.waits.table), len(out), n)
		}
	}
}

func TestTimeWaitsEnd(t *testing.T) {
	var w timeWaits
	key := func(n uint16) flowKey { return flowKey{localPort: 80 + n%2, peerPort: n} }
	for n := range uint16(1000) {
		w.add(key(n), timeWait{until: int64(n) + 1000, reuse: n%4 == 0})
	}
	w.renew(key(10), 5000)
	w.remove(key(11))
	w.add(key(11), timeWait{until: 6000})
	w.remove(key(12))

	w.expire(1499)
	if n := len(w.table); n != 502 {
		t.Errorf("%d are left of 500, one renewed and one new", n)
	}
	w.expire(4999)
	if n := len(w.table); n != 2 {
		t.Errorf("%d are left, want the one renewed and the one new", n)
	}
	w.expire(6000)
	if _, _, waiting := w.line.oldest(); len(w.table) != 0 || waiting || len(w.bound) != 0 {
		t.Errorf("%d are left, one in line: %v, %d ports", len(w.table), waiting, len(w.bound))
	}
}

// A peer that uses its port again and again ends one TIME-WAIT after the other
// early: what is kept must not grow with their number.
func TestTimeWaitsUsedAgain(t *testing.T) {
	var w timeWaits
	for n := range int64(20 * waitPage) {
		w.add(waitingOne, timeWait{until: n + 1e12})
		if n%3 == 0 {
			w.remove(waitingOne)
		}
	}
	if len(w.line.pages) != 1 {
		t.Errorf("%d places for one connection", len(w.line.pages)*waitPage)
	}
}

func TestTimeWaitsAreBounded(t *testing.T) {
	var w timeWaits
	key := func(n uint32) flowKey {
		return flowKey{peer: [4]byte{1, 2, byte(n >> 16), byte(n >> 24)}, peerPort: uint16(n)}
	}
	w.add(key(maxTimeWaits+10), timeWait{until: 1})
	for n := range uint32(maxTimeWaits + 10) {
		if n == maxTimeWaits/2 {
			w.renew(key(12), int64(n)) // which is as good as a new one
			w.remove(key(maxTimeWaits + 10))
			w.add(key(maxTimeWaits+10), timeWait{until: int64(n)})
		}
		w.add(key(n), timeWait{until: int64(n) + 1})
	}
	for n, want := range map[uint32]bool{10: false, 11: true, 12: true, maxTimeWaits + 9: true, maxTimeWaits + 10: true} {
		if got := w.get(key(n)) != nil; got != want {
			t.Errorf("number %d is kept: %v", n, got)
		}
	}
	if len(w.table) != maxTimeWaits || w.overflows != 11 || len(w.line.pages) != maxTimeWaits/waitPage+1 {
		t.Errorf("%d are kept, %d ended early, %d pages", len(w.table), w.overflows, len(w.line.pages))
	}
}

// SPDX-License-Identifier: Apache-2.0

package netstack

import (
	"net/netip"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// timeWait is what is left of a connection in TIME-WAIT: enough to acknowledge
// its peer's FIN again and to tell an old segment from a new connection's SYN.
// gVisor keeps the whole endpoint, some 8 KB with timers and entries in maps:
// at 10,000 connections a second, 400 MB that are cold when they are taken
// apart at last, and through which the collector goes again and again.
//
// It holds no pointer, so the collector does not look at it.
type timeWait struct {
	until   int64  // on the loop's clock
	seq     uint32 // of what we would send next
	ack     uint32 // of what we expect
	shift   uint32 // from the loop's clock, in ms, to our timestamps
	recent  uint32 // the peer's last timestamp
	echoed  uint32 // by the loop's clock, in ms: when a bare acknowledgement was last answered
	window  uint16
	stamped bool // there are timestamps
	reuse   bool // see flow
}

// timeWaits are the connections in TIME-WAIT.
type timeWaits struct {
	table map[flowKey]place
	line  waitLine
	bound map[boundPort]*bound // by local port
	ended []ended              // to be buried
	last  *flow                // the last one that has left, of those that sent a packet

	overflows uint64 // that ended early because there were too many
	unechoed  uint64 // bare acknowledgements that were not answered
}

// ended is an endpoint in TIME-WAIT.
type ended struct {
	fl  *flow
	end func()
}

type boundPort struct {
	local [4]byte
	port  uint16
}

// bound counts the connections in TIME-WAIT at a local port.
type bound struct{ all, reuse int }

// maxTimeWaits bounds them, as Linux's net.ipv4.tcp_max_tw_buckets does; beyond
// it the oldest ends early.
const maxTimeWaits = 1 << 18

// echoEvery is how often, in ms, a connection answers what carries neither data
// nor FIN: it may itself be the answer of an end that expects something else, and
// the two would never stop. Linux's net.ipv4.tcp_invalid_ratelimit is as long.
const echoEvery = 500

// timeWaitMark makes the time of TIME-WAIT one that no other timer is set to.
const timeWaitMark = time.Nanosecond

// inTimeWait is called by the clock when the stack sets the timer that ends a
// connection in TIME-WAIT by calling end. It returns false if it cannot tell
// which one, and the timer has to run.
//
// gVisor does not say. But its one processor goroutine sets the timer in the
// same breath as it moves an endpoint to TIME-WAIT, after the endpoint has
// acknowledged the peer's FIN: so an endpoint that is in TIME-WAIT, and has no
// timer yet, is the one. Another goroutine may have sent a packet of another
// connection since, which is not in that state then.
func (t *flows) inTimeWait(end func()) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	fl := t.waits.last
	if fl == nil || fl.ended || fl.ep.EndpointState() != tcp.StateTimeWait {
		return false
	}
	t.waits.last, fl.ended = nil, true
	t.waits.ended = append(t.waits.ended, ended{fl, end})
	return true
}

// bury ends the endpoints that have come to TIME-WAIT and keeps what remains of
// them. Called by the loop: it delivers what comes, so nothing comes meanwhile.
func (s *Stack) bury(now int64) {
	t := s.flows
	t.mu.Lock()
	t.waits.expire(now)
	if len(t.waits.ended) == 0 {
		t.mu.Unlock()
		return
	}
	s.ended, t.waits.ended = t.waits.ended, s.ended[:0]
	for _, e := range s.ended {
		fl := e.fl
		t.drop(fl)
		// It may have given way to a new connection already.
		if fl.ep.EndpointState() == tcp.StateTimeWait {
			w := fl.final
			w.until, w.reuse = now+int64(s.clock.timeWait), fl.reuse
			t.waits.add(fl.key, w)
		}
		fl.ep = nil // the line of those that have left goes on holding fl
	}
	t.mu.Unlock()
	for _, e := range s.ended {
		e.end()
	}
	clear(s.ended)
}

// remains takes from the header of a packet that is sent what its connection
// would answer with.
func remains(th []byte, now int64) timeWait {
	h := header.TCP(th)
	w := timeWait{seq: h.SequenceNumber(), ack: h.AckNumber(), window: h.WindowSize(), echoed: millis(now) - echoEvery}
	if h.Flags()&header.TCPFlagFin != 0 {
		w.seq++
	}
	if o := header.ParseTCPOptions(h.Options()); o.TS {
		w.stamped, w.shift, w.recent = true, o.TSVal-millis(now), o.TSEcr
	}
	return w
}

func millis(now int64) uint32 { return uint32(now / int64(time.Millisecond)) }

func (w *timeWaits) add(k flowKey, one timeWait) {
	if w.table == nil {
		w.table, w.bound = make(map[flowKey]place), make(map[boundPort]*bound)
	}
	w.remove(k)
	for len(w.table) >= maxTimeWaits {
		_, oldest, _ := w.line.oldest()
		w.remove(oldest)
		w.overflows++
	}
	w.table[k] = w.line.add(k, one)
	at := boundPort{k.local, k.localPort}
	b := w.bound[at]
	if b == nil {
		b = new(bound)
		w.bound[at] = b
	}
	b.all++
	if one.reuse {
		b.reuse++
	}
}

// get returns the record of a connection, which is valid until it is removed, nil
// if there is none.
func (w *timeWaits) get(k flowKey) *timeWait {
	if p, ok := w.table[k]; ok {
		return &w.line.at(p).timeWait
	}
	return nil
}

func (w *timeWaits) remove(k flowKey) {
	p, ok := w.table[k]
	if !ok {
		return
	}
	delete(w.table, k)
	reuse := w.line.at(p).reuse
	w.line.remove(p)
	at := boundPort{k.local, k.localPort}
	b := w.bound[at]
	if b.all--; reuse {
		b.reuse--
	}
	if b.all == 0 {
		delete(w.bound, at)
	}
}

// renew has a connection wait anew.
func (w *timeWaits) renew(k flowKey, until int64) {
	p := w.table[k]
	w.line.at(p).until = until
	w.line.toEnd(p)
}

// expire ends those whose time is over.
func (w *timeWaits) expire(now int64) {
	for {
		until, k, ok := w.line.oldest()
		if !ok || until > now {
			return
		}
		w.remove(k)
	}
}

// waiting handles a segment for a connection in TIME-WAIT, as RFC 9293, 1122
// and 1337 have it. It reports false if it is for none, or begins a new one.
// Called by the loop.
func (t *flows) waiting(e *Endpoint, g *inbound) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	w := t.waits.get(g.key)
	if w == nil {
		return false
	}
	h := header.TCP(g.tcp())
	stats := e.stack.Stats().TCP
	if !g.sound() {
		stats.ChecksumErrors.Increment()
		return true
	}
	seq, flags, o := h.SequenceNumber(), h.Flags(), header.ParseTCPOptions(h[tcpLen:g.hdr])
	n := uint32(len(h) - g.hdr)
	switch newer := w.stamped && o.TS && int32(o.TSVal-w.recent) > 0; {
	case flags&header.TCPFlagRst != 0: // RFC 1337
	case flags&header.TCPFlagSyn != 0:
		if flags&header.TCPFlagAck == 0 && (int32(seq-w.ack) > 0 || newer) { // RFC 1122, RFC 6191
			t.waits.remove(g.key)
			return false // the stack counts it
		}
	case flags&header.TCPFlagAck == 0:
	case seq != w.ack || n > 0:
		if newer && int32(seq-w.ack) <= 0 {
			w.recent = o.TSVal
		}
		now := t.now.Load()
		if end := flags&header.TCPFlagFin != 0; end && seq+n+1 == w.ack { // our acknowledgement was lost
			t.waits.renew(g.key, now+int64(e.stack.clock.timeWait))
		} else if !end && n == 0 && !w.echoes(now) {
			t.waits.unechoed++
			break
		}
		if e.enqueue(w.answer(g, now)) {
			e.cuts[0].Increment()
			e.cuts[1].Increment()
		}
	}
	stats.ValidSegmentsReceived.Increment()
	return true
}

// echoes tells whether a bare acknowledgement is to be answered now.
func (w *timeWait) echoes(now int64) bool {
	if millis(now)-w.echoed < echoEvery {
		return false
	}
	w.echoed = millis(now)
	return true
}

// sound tells whether the segment's checksum is right.
func (g *inbound) sound() bool { return g.sum() == 0xffff }

// sum is the checksum over the segment, as it is, and its addresses.
func (g *inbound) sum() uint16 {
	b := g.tcp()
	sum := checksum.Checksum(g.frame[ethLen+12:ethLen+20], uint16(header.TCPProtocolNumber))
	return checksum.Checksum(b, checksum.Combine(sum, uint16(len(b))))
}

// answer is the acknowledgement of what a connection in TIME-WAIT has got, sent
// back where g came from.
func (w *timeWait) answer(g *inbound, now int64) *stack.PacketBuffer {
	const stamp = 12 // the option with its padding
	size := tcpLen
	if w.stamped {
		size += stamp
	}
	v := buffer.NewViewSize(ethLen + ipv4Len + size)
	f, in := v.AsSlice(), g.frame
	copy(f, in[6:12])
	copy(f[6:], in[:6])
	copy(f[12:], in[12:14])
	ip := header.IPv4(f[ethLen:])
	ip.Encode(&header.IPv4Fields{
		TotalLength: uint16(ipv4Len + size), Flags: header.IPv4FlagDontFragment, TTL: 64,
		Protocol: uint8(header.TCPProtocolNumber),
		SrcAddr:  tcpip.AddrFrom4(g.key.local), DstAddr: tcpip.AddrFrom4(g.key.peer),
	})
	ip.SetChecksum(^ip.CalculateChecksum())
	h := header.TCP(f[ethLen+ipv4Len:])
	h.Encode(&header.TCPFields{
		SrcPort: g.key.localPort, DstPort: g.key.peerPort, SeqNum: w.seq, AckNum: w.ack,
		DataOffset: uint8(size), Flags: header.TCPFlagAck, WindowSize: w.window,
	})
	if w.stamped {
		n := header.EncodeNOP(h[tcpLen:])
		n += header.EncodeNOP(h[tcpLen+n:])
		header.EncodeTSOption(millis(now)+w.shift, w.recent, h[tcpLen+n:])
	}
	h.SetChecksum(^(&inbound{frame: f}).sum())
	return stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithView(v)})
}

// PortWaits tells whether connections in TIME-WAIT keep a socket from being
// bound to an address, as they do unless it shares its port as they did.
// Called by the loop.
func (s *Stack) PortWaits(at netip.AddrPort, reuseAddr, reusePort bool) bool {
	if reusePort || at.Port() == 0 {
		return false
	}
	t := s.flows
	t.mu.Lock()
	defer t.mu.Unlock()
	for p, b := range t.waits.bound {
		same := at.Addr().IsUnspecified() || at.Addr().Unmap() == netip.AddrFrom4(p.local)
		if p.port == at.Port() && same && !(reuseAddr && b.reuse == b.all) {
			return true
		}
	}
	return false
}

// timeWaiting is how many connections are in TIME-WAIT here, how many were ended
// early, and how many bare acknowledgements were not answered.
func (t *flows) timeWaiting() (n, overflows, unechoed uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return uint64(len(t.waits.table)), t.waits.overflows, t.waits.unechoed
}

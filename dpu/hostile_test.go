// SPDX-License-Identifier: Apache-2.0

package dpu_test

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pno/offload"
)

// A session that breaks the protocol is ended, whatever the violation; the
// others go on.
func TestViolationEndsOneSession(t *testing.T) {
	le := binary.LittleEndian
	for _, c := range []struct {
		name string
		do   func(h *host, l, s *hsock)
	}{
		{"unknown operation", func(h *host, l, s *hsock) { h.emit(0, 33, 0, s.handle, 0, 0, nil) }},
		{"operation of the other direction", func(h *host, l, s *hsock) { h.emit(0, offload.OpData, 0, s.handle, 0, 0, nil) }},
		{"send behind the stream", func(h *host, l, s *hsock) {
			h.emit(0, offload.OpSend, 0, s.handle, 0, 0, []byte("abc"))
			h.emit(0, offload.OpSend, 0, s.handle, 0, 0, []byte("abc"))
		}},
		{"send beyond the window", func(h *host, l, s *hsock) {
			for at := uint32(0); at < 128<<20; at += 30000 { // more than all buffers on the way take
				for !h.emit(0, offload.OpSend, 0, s.handle, at, 0, make([]byte, 30000)) {
					time.Sleep(100 * time.Microsecond)
					if h.dead() {
						return
					}
				}
			}
		}},
		{"consumed what was never sent", func(h *host, l, s *hsock) { h.emit(0, offload.OpRxAck, 0, s.handle, 0, 1, nil) }},
		{"short bind", func(h *host, l, s *hsock) {
			h.emit(0, offload.OpBind, 0, offload.HandleHost|999, 1, 0, make([]byte, 8))
		}},
		{"bind of a handle in use", func(h *host, l, s *hsock) {
			h.emit(0, offload.OpBind, 0, l.handle, 1, 0, make([]byte, offload.BindReqSize))
		}},
		{"bind of the DPU's handle", func(h *host, l, s *hsock) {
			h.emit(0, offload.OpBind, 0, 5, 1, 0, make([]byte, offload.BindReqSize))
		}},
		{"connect on a connection", func(h *host, l, s *hsock) {
			h.emit(0, offload.OpConnect, 0, l.handle, 1, 0, make([]byte, offload.ConnectReqSize))
		}},
		{"malformed option", func(h *host, l, s *hsock) { h.emit(0, offload.OpSetOpt, 0, s.handle, 1, 0, make([]byte, 9)) }},
		{"subscription to nothing", func(h *host, l, s *hsock) { h.emit(0, offload.OpSubscribe, 0, l.handle, 0, 0, nil) }},
		{"shutdown of unknown kind", func(h *host, l, s *hsock) { h.emit(0, offload.OpShutdown, 7, s.handle, 0, 0, nil) }},
		{"datagram for a connection", func(h *host, l, s *hsock) {
			h.emit(0, offload.OpSendDgram, 0, s.handle, 0, 0, make([]byte, offload.DgramSize))
		}},
		{"short move", func(h *host, l, s *hsock) { h.emit(0, offload.OpMove, 0, s.handle, 0, 0, make([]byte, 15)) }},
		{"move from nothing", badMove(offload.MoveReq{From: 77, Len: 1})},
		{"move from a listener", func(h *host, l, s *hsock) { badMove(offload.MoveReq{From: l.handle, Len: 1})(h, l, s) }},
		{"move of what is not on hold", func(h *host, l, s *hsock) { badMove(offload.MoveReq{From: s.handle, Len: 1})(h, l, s) }},
		{"move of what never came", func(h *host, l, s *hsock) {
			h.emit(0, offload.OpHold, offload.FlagHoldOn, s.handle, 1, 0, nil)
			badMove(offload.MoveReq{From: s.handle, Len: 1})(h, l, s)
		}},
		{"move of more than there can be", func(h *host, l, s *hsock) {
			h.emit(0, offload.OpHold, offload.FlagHoldOn, s.handle, 1, 0, nil)
			badMove(offload.MoveReq{From: s.handle, Len: ^uint32(0)})(h, l, s)
		}},
		{"move of nothing", func(h *host, l, s *hsock) {
			h.emit(0, offload.OpHold, offload.FlagHoldOn, s.handle, 1, 0, nil)
			badMove(offload.MoveReq{From: s.handle})(h, l, s)
		}},
		{"move of what was moved", func(h *host, l, s *hsock) {
			h.emit(0, offload.OpHold, offload.FlagHoldOn, s.handle, 1, 0, nil)
			badMove(offload.MoveReq{From: s.handle, Off: ^uint32(0), Len: 1})(h, l, s)
		}},
		{"move on a datagram socket", badDgram(func(h *host, u *hsock) { badMove(offload.MoveReq{From: u.handle, Len: 1})(h, nil, u) })},
		{"hold of a listener", func(h *host, l, s *hsock) { h.emit(0, offload.OpHold, offload.FlagHoldOn, l.handle, 1, 0, nil) }},
		{"hold of unknown kind", func(h *host, l, s *hsock) { h.emit(0, offload.OpHold, 2, s.handle, 1, 0, nil) }},
		{"hold that counts too much", func(h *host, l, s *hsock) { h.emit(0, offload.OpHold, 1, s.handle, 1, 9, nil) }},
		{"stream for a datagram socket", badDgram(func(h *host, u *hsock) {
			h.emit(0, offload.OpSend, 0, u.handle, 0, 0, []byte("abc"))
		})},
		{"short datagram", badDgram(func(h *host, u *hsock) {
			h.emit(0, offload.OpSendDgram, 0, u.handle, 0, 0, make([]byte, offload.DgramSize-1))
		})},
		{"datagram of another length", badDgram(func(h *host, u *hsock) {
			h.emit(0, offload.OpSendDgram, 0, u.handle, 0, 0, append(make([]byte, offload.DgramSize), 1))
		})},
		{"datagram without end", badDgram(func(h *host, u *hsock) {
			for i := range uint32(3) {
				h.emit(0, offload.OpSendDgram, offload.FlagPart, u.handle, 30000*i, 0, make([]byte, 30000))
			}
		})},
		{"datagram behind the stream", badDgram(func(h *host, u *hsock) {
			h.emit(0, offload.OpSendDgram, 0, u.handle, 0, 0, make([]byte, offload.DgramSize))
			h.emit(0, offload.OpSendDgram, 0, u.handle, 0, 0, make([]byte, offload.DgramSize))
		})},
		{"disconnect of nothing", func(h *host, l, s *hsock) {
			b := make([]byte, offload.ConnectReqSize)
			offload.ConnectReq{Proto: offload.ProtoUDP}.Put(b)
			h.emit(0, offload.OpConnect, 0, offload.HandleHost|998, 1, 0, b)
		}},
		{"connect of a connection as a datagram socket", func(h *host, l, s *hsock) {
			b := make([]byte, offload.ConnectReqSize)
			offload.ConnectReq{Peer: offload.Addr{Family: 4, Port: 9}, Proto: offload.ProtoUDP}.Put(b)
			h.emit(0, offload.OpConnect, 0, s.handle, 1, 0, b)
		}},
		{"producer runs away", func(h *host, l, s *hsock) { h.line(0, func(b []byte) { le.PutUint64(b, 1<<40) }) }},
		{"producer moves back", func(h *host, l, s *hsock) { h.line(0, func(b []byte) { le.PutUint64(b, 0) }) }},
		{"producer unaligned", func(h *host, l, s *hsock) { h.line(0, func(b []byte) { b[0]++ }) }},
		{"consumer runs ahead", func(h *host, l, s *hsock) { h.line(0, func(b []byte) { le.PutUint64(b[8:], 1<<40) }) }},
		{"record longer than the ring", func(h *host, l, s *hsock) {
			b := h.qps[0][0].Emit(offload.OpSend, 0, s.handle, 0, 0, 16)
			at := h.l.QP(0, 0).H2D
			_ = b
			for i := uint64(0); i < uint64(h.l.H2DSize); i += 16 {
				le.PutUint16(h.mem[at+i+2:], 0xffff)
			}
			h.publish(0, 0)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, rigOptions{})
			bad, good := newHost(t, r.agent, testLayout(1)), newHost(t, r.agent, testLayout(1))
			go echo(r.remote.listen(t, remoteAddr+":9000"))
			l := bad.listen(0, dpuAddr+":80")
			s := bad.connect(0, remoteAddr+":9000", "")
			gs := good.connect(0, remoteAddr+":9000", "")
			go bad.do(func() { c.do(bad, l, s) })
			select {
			case m := <-r.agent.note:
				bad.ended.Store(true)
				if m.Session != bad.id || m.Reason == "" {
					t.Errorf("notice %+v", m)
				}
				t.Log(m.Reason)
			case <-time.After(20 * time.Second):
				t.Fatal("the session goes on")
			}
			if err := gs.write([]byte("fine")); err != nil {
				t.Fatal(err)
			}
			if b, err := gs.readN(4); err != nil || string(b) != "fine" {
				t.Errorf("the other session: %q, %v", b, err)
			}
			// What the host had sent before is still flushed.
			good.until("the other session's socket alone", func() bool {
				st := r.d.Stats()
				return st.Sessions.Open == 1 && st.Sessions.Violators == 1 && st.Sockets.Open == 1
			})
		})
	}
}

func badMove(m offload.MoveReq) func(h *host, l, s *hsock) {
	return func(h *host, _, s *hsock) {
		b := make([]byte, offload.MoveReqSize)
		m.Put(b)
		h.emit(0, offload.OpMove, 0, s.handle, 0, 0, b)
	}
}

// badDgram gives a case a datagram socket.
func badDgram(do func(h *host, u *hsock)) func(h *host, l, s *hsock) {
	return func(h *host, _, _ *hsock) {
		u := &hsock{h: h, handle: offload.HandleHost | 997}
		b := make([]byte, offload.BindReqSize)
		offload.BindReq{Local: offload.Addr{Family: 4}, Proto: offload.ProtoUDP}.Put(b)
		h.emit(0, offload.OpBind, 0, u.handle, 1, 0, b)
		do(h, u)
	}
}

// dead tells whether the DPU has dropped the session.
func (h *host) dead() bool { return h.ended.Load() }

// line lets a test write the host's control line and rings the doorbell.
func (h *host) line(shard int, f func([]byte)) {
	f(h.mem[h.l.QP(0, shard).HostLine:][:32])
	one := [8]byte{1}
	_, _ = unix.Write(h.bells[shard], one[:])
}

// FuzzRecords feeds a session with arbitrary bytes as records: nothing worse
// may happen than the end of the session.
func FuzzRecords(f *testing.F) {
	rec := func(op offload.Op, sock uint32, n int) []byte {
		b := make([]byte, offload.RecordSpace(n))
		offload.PutRecord(b, offload.Record{Op: op, Len: uint16(n), Sock: sock})
		return b
	}
	bind := rec(offload.OpBind, offload.HandleHost|1, offload.BindReqSize)
	bind[16], bind[40] = 4, 6
	f.Add(append(bind, rec(offload.OpListen, offload.HandleHost|1, 0)...))
	connect := rec(offload.OpConnect, offload.HandleHost|2, offload.ConnectReqSize)
	copy(connect[40:], []byte{4, 0, 80, 0, 0, 0, 0, 0, 127, 0, 0, 1})
	connect[64] = 6
	f.Add(append(connect, rec(offload.OpSend, offload.HandleHost|2, 100)...))
	f.Add(rec(offload.OpFork, 0, 16))
	hold := rec(offload.OpHold, offload.HandleHost|2, 0)
	hold[1] = offload.FlagHoldOn
	move := rec(offload.OpMove, offload.HandleHost|2, offload.MoveReqSize)
	offload.MoveReq{From: offload.HandleHost | 2, Len: 5}.Put(move[offload.RecordHdr:])
	f.Add(slices.Concat(connect, hold, move, rec(offload.OpHold, offload.HandleHost|2, 0)))
	udp := append([]byte(nil), bind...)
	udp[40] = offload.ProtoUDP
	dgram := rec(offload.OpSendDgram, offload.HandleHost|1, offload.DgramSize+5)
	(&offload.Dgram{Len: 5, Segment: 2, Peer: offload.Addr{Family: 4, Port: 53, IP: [16]byte{127, 0, 0, 1}}}).Put(dgram[offload.RecordHdr:])
	f.Add(append(udp, dgram...))
	udpConnect := append([]byte(nil), connect...)
	udpConnect[64] = offload.ProtoUDP
	f.Add(append(udpConnect, dgram...))
	f.Fuzz(func(t *testing.T, b []byte) {
		b = b[:min(len(b), 1<<15)&^15]
		r := fuzzRig(t)
		h := newHost(t, r.agent, testLayout(1))
		h.do(func() {
			at := h.l.QP(0, 0)
			copy(h.mem[at.H2D:], b)
			h.line(0, func(l []byte) { binary.LittleEndian.PutUint64(l, uint64(len(b))) })
		})
		if !r.d.Health().Serving {
			t.Fatal("the DPU does not answer")
		}
		h.kill()
	})
}

// Random but well-formed records, many more than a fuzzer's minute gives.
func TestRandomRecords(t *testing.T) {
	r := newRig(t, rigOptions{})
	go echo(r.remote.listen(t, remoteAddr+":9000"))
	rng := rand.New(rand.NewPCG(1, 2))
	for range 12 {
		h := newHost(t, r.agent, testLayout(1))
		handles := []uint32{offload.HandleHost | 1, offload.HandleHost | 2, 1<<22 | 1, 1<<22 | 2}
		for range 300 {
			op := offload.Op(1 + rng.IntN(21))
			n := []int{0, 16, offload.BindReqSize, offload.ConnectReqSize, offload.OptValSize, offload.DgramSize}[rng.IntN(6)]
			proto := []byte{offload.ProtoTCP, offload.ProtoUDP}[rng.IntN(2)]
			b := make([]byte, n)
			if n >= 24 {
				offload.Addr{Family: 4, Port: 80, IP: [16]byte{127, 0, 0, 1}}.Put(b)
			}
			if n == offload.ConnectReqSize {
				offload.Addr{Family: 4, Port: 80, IP: [16]byte{127, 0, 0, 1}}.Put(b[24:])
				b[48] = proto
			} else if n == offload.BindReqSize {
				b[24] = proto
			} else if n == offload.DgramSize {
				copy(b[8:], b[:offload.AddrSize])
				clear(b[:8])
			}
			if n == 16 {
				binary.LittleEndian.PutUint64(b, rng.Uint64())
			}
			h.do(func() {
				h.emit(0, op, uint8(rng.IntN(3)), handles[rng.IntN(len(handles))], uint32(rng.IntN(2)*rng.IntN(40)), uint32(1+rng.IntN(3)), b)
			})
			if h.dead() {
				break
			}
		}
		h.kill()
	}
	if !r.d.Health().Serving {
		t.Error("the DPU does not answer")
	}
	for _, s := range r.d.Sockets() {
		if s.Kind != "orphan" {
			t.Errorf("socket left: %+v", s)
		}
	}
}

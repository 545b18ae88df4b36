// SPDX-License-Identifier: Apache-2.0

package session

import (
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"pno/dpu/netstack"
	"pno/dpu/report"
)

func (c *counters) traffic() report.Traffic {
	return report.Traffic{
		BytesRx: c.bytesRx, BytesTx: c.bytesTx, Spliced: c.spliced, RecordsH2D: c.recordsH2D, RecordsD2H: c.recordsD2H,
		Interrupts: c.interrupts, Moderated: c.moderated, Doorbells: c.doorbells,
		UnknownSock: c.unknown, RingFull: c.ringFull,
		DMAReads: c.dmaReads, DMAWrites: c.dmaWrites, DMAReadBytes: c.dmaReadBytes, DMAWriteBytes: c.dmaWriteBytes,
	}
}

// Fill adds the table's share to a report of its shard and of the whole.
func (t *Table) Fill(r *report.Shard, total *report.SocketTotals) {
	c := &t.stats
	r.Sessions, r.Sockets, r.HotQueues, r.Accepts = len(t.sessions), c.sockets, len(t.hot), c.accepted
	for _, s := range t.sessions {
		for _, q := range s.queues {
			if q != nil {
				r.OpenQueues++
			}
		}
		s.handles.each(func(h *hold) {
			switch h.sock.kind {
			case listening:
				total.Listeners++
				for _, sub := range h.sock.l.subs {
					if sub.h == h {
						total.Unaccepted += len(sub.unaccepted)
					}
				}
			case connected:
				total.Connections++
			case datagrams:
				total.Datagram++
			}
		})
	}
	r.Traffic = c.traffic()
	total.Open += c.sockets
	total.Orphans += len(t.orphans)
	total.Accepted += c.accepted
	total.Connected += c.connected
	total.ConnectFail += c.connectFailed
	total.Closed += c.closed
	total.ResetsSent += c.resets
	total.HandedOver += c.handedOver
	total.Redirects += c.redirects
	total.DgramsTooLong += c.dgramsTooLong
	total.DgramsUnsent += c.dgramsUnsent
}

// Grants is the number of forks whose child has not come.
func (t *Table) Grants() int { return len(t.grants) }

// FillSession adds this shard's share to a session's report.
func (t *Table) FillSession(r *report.Session) {
	s := t.sessions[r.ID]
	if s == nil {
		return
	}
	channels := 0
	for _, q := range s.queues {
		if q != nil {
			channels++
		}
	}
	r.Channels = max(r.Channels, channels)
	r.Sockets += s.handles.count
	s.handles.each(func(h *hold) {
		switch h.sock.kind {
		case listening:
			r.Listeners++
		case connected:
			r.Connections++
		}
	})
	tr := s.stats.traffic()
	tr.DMAReads, tr.DMAWrites = s.t.reads, s.t.writes
	tr.DMAReadBytes, tr.DMAWriteBytes = s.t.readBytes, s.t.writeBytes
	r.Traffic.Add(tr)
}

// Rings reports every queue pair.
func (t *Table) Rings() (list []report.Ring) {
	for _, s := range t.sessions {
		for _, q := range s.queues {
			if q == nil {
				continue
			}
			st := q.qp.Stats()
			list = append(list, report.Ring{
				Session: s.id, Channel: q.channel, Shard: t.Shard, Hot: q.hot, DoorbellArmed: q.qp.Armed(),
				H2DSize: uint32(st.H2DSize), H2DUsed: st.H2DUsed, H2DConsumed: st.H2DConsumed,
				D2HSize: uint32(st.D2HSize), D2HUsed: st.D2HUsed, D2HProduced: st.D2HProduced,
				Waiting: len(q.waiting) + len(q.overflow), RecordsH2D: q.h2d, RecordsD2H: q.d2h,
				Interrupts: q.interrupts, Moderated: q.moderated,
			})
		}
	}
	return list
}

// Sockets reports every socket once for each of its holders.
func (t *Table) Sockets() (list []report.Socket) {
	for _, s := range t.sessions {
		s.handles.each(func(h *hold) {
			r := t.socket(h.sock)
			r.Session, r.PID, r.Process, r.Handle = s.id, s.proc.PID, s.proc.Name, h.handle
			if h.sock.at == h && h.sock.home != nil {
				r.Channel = h.sock.home.channel
			}
			list = append(list, r)
		})
	}
	for s := range t.orphans {
		list = append(list, t.socket(s))
	}
	return list
}

func (t *Table) socket(s *socket) report.Socket {
	r := report.Socket{
		Shard: t.Shard, Channel: -1, State: netstack.StateName(s.state()),
		BytesRx: s.rxBytes, BytesTx: s.txBytes, RxUnread: s.sent - s.consumed,
		RxQueued: uint64(t.queued(s)) + uint64(s.retained()) + uint64(s.onHold()), TxPending: uint64(s.pend.len()),
		Holders: len(s.holds), Shared: len(s.holds) > 1,
	}
	local, peer := s.addrs()
	r.Local = local.String()
	if peer.IsValid() {
		r.Peer = peer.String()
	}
	switch {
	case s.kind == datagrams:
		t.datagramSocket(s, &r)
	case s.kind == listening:
		r.Kind = report.KindListener
		r.Backlog, r.Subscribers, r.AcceptQueue = s.l.backlog, len(s.l.subs), len(s.l.parked)
		for _, sub := range s.l.subs {
			r.Unaccepted += len(sub.unaccepted)
		}
	case s.kind == bound:
		r.Kind = report.KindBound
	case s.kind == connecting:
		r.Kind = report.KindConnecting
	case len(s.holds) == 0:
		r.Kind = report.KindOrphan
	default:
		r.Kind = report.KindConnection
	}
	if s.ep != nil && s.kind == connected {
		t.tcp(s, &r)
	}
	return r
}

func (t *Table) datagramSocket(s *socket, r *report.Socket) {
	r.Kind = report.KindDatagram
	if s.u.Peer().IsValid() {
		r.State = netstack.StateName(tcp.StateEstablished)
	}
	bytes, n, dropped := s.u.Queued()
	r.RxQueued, r.Dropped = uint64(bytes)+uint64(s.retained()), dropped
	r.Waiting = n
}

func (t *Table) tcp(s *socket, r *report.Socket) {
	var info tcpip.TCPInfoOption
	if s.ep.GetSockOpt(&info) == nil {
		r.RTTMicros, r.Cwnd = uint64(info.RTT.Microseconds()), info.SndCwnd
	}
	if n, err := s.ep.GetSockOptInt(tcpip.SendQueueSizeOption); err == nil {
		r.TxQueued = uint64(n)
	}
	if st, ok := s.ep.Stats().(*tcp.Stats); ok {
		r.Retransmits = st.SendErrors.Retransmits.Value()
	}
}

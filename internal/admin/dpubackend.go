// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	dpureport "pno/dpu/report"
	"pno/offload"
	adminv1 "pno/proto/pno/admin/v1"
)

// dpuBackend turns what dpud reports into messages.
type dpuBackend struct{ dpu DPU }

func (b dpuBackend) serving() bool { return b.dpu.Health().Serving }

func (b dpuBackend) status() *adminv1.Status { return dpuStatus(b.dpu.Stats(), b.dpu.Health()) }

func (b dpuBackend) stats() *adminv1.Stats { return dpuStats(b.dpu.Stats()) }

func (b dpuBackend) shards() []*adminv1.Shard { return dpuShards(b.dpu.Stats().Shards) }

func (b dpuBackend) links() []*adminv1.Link { return dpuLinks(b.dpu.Stats().Links) }

func dpuStatus(stats dpureport.Stats, health dpureport.Health) *adminv1.Status {
	return &adminv1.Status{
		Role:          adminv1.Role_ROLE_DPU,
		Version:       stats.Version,
		Protocol:      fmt.Sprintf("%d.%d", offload.VersionMajor, offload.VersionMinor),
		StartTime:     timestamp(stats.StartedAt),
		PeerConnected: health.Control,
		Problems:      texts(health.Reasons),
		Sessions:      count(stats.Sessions.Open),
		Shards:        uint32(len(stats.Shards)),
	}
}

func dpuStats(s dpureport.Stats) *adminv1.Stats {
	link := new(adminv1.LinkCounters)
	for _, l := range s.Links {
		link.PacketsRx += l.RxPackets
		link.PacketsTx += l.TxPackets
		link.BytesRx += l.RxBytes
		link.BytesTx += l.TxBytes
		link.DropsRx += l.RxDropped
		link.DropsTx += l.TxDropped
		link.Kicks += l.Kicks
	}
	process := processStats()
	process.HeapBytes = s.Memory.Heap
	process.SysBytes = s.Memory.Sys
	process.Goroutines = count(s.Memory.Goroutines)
	process.Gcs = s.Memory.GCs
	return &adminv1.Stats{
		Time:      timestamp(s.Time),
		StartTime: timestamp(s.StartedAt),
		Dpu: &adminv1.DpuStats{
			Sessions: &adminv1.DpuSessionStats{
				Active:         count(s.Sessions.Open),
				Opened:         s.Sessions.Opened,
				Closed:         s.Sessions.Closed,
				Refused:        s.Sessions.Refused,
				Violators:      s.Sessions.Violators,
				ClosedByReason: reasons(s.Sessions.ByReason),
				ForkWaits:      count(s.Sessions.ForkWaits),
			},
			Sockets: &adminv1.DpuSocketStats{
				Open:          count(s.Sockets.Open),
				Listeners:     count(s.Sockets.Listeners),
				Connections:   count(s.Sockets.Connections),
				Orphans:       count(s.Sockets.Orphans),
				Unaccepted:    count(s.Sockets.Unaccepted),
				Accepted:      s.Sockets.Accepted,
				Connected:     s.Sockets.Connected,
				ConnectFailed: s.Sockets.ConnectFail,
				Closed:        s.Sockets.Closed,
				ResetsSent:    s.Sockets.ResetsSent,
				HandedOver:    s.Sockets.HandedOver,
				Redirects:     s.Sockets.Redirects,
			},
			BytesTx:  s.Traffic.BytesTx,
			BytesRx:  s.Traffic.BytesRx,
			Channel:  channelStats(s.Traffic),
			Link:     link,
			Netstack: dpuCounters(s.Netstack),
			Process:  process,
		},
	}
}

func channelStats(t dpureport.Traffic) *adminv1.ChannelStats {
	return &adminv1.ChannelStats{
		RecordsH2D:          t.RecordsH2D,
		RecordsD2H:          t.RecordsD2H,
		RecordsUnknown:      t.UnknownSock,
		DmaReads:            t.DMAReads,
		DmaWrites:           t.DMAWrites,
		DmaReadBytes:        t.DMAReadBytes,
		DmaWriteBytes:       t.DMAWriteBytes,
		Doorbells:           t.Doorbells,
		Interrupts:          t.Interrupts,
		InterruptsModerated: t.Moderated,
		RingFull:            t.RingFull,
		BytesSpliced:        t.Spliced,
	}
}

func dpuCounters(in []dpureport.Counter) []*adminv1.Counter {
	out := make([]*adminv1.Counter, len(in))
	for i, c := range in {
		out[i] = &adminv1.Counter{Name: c.Name, Help: c.Help, Value: c.Value, Gauge: c.Gauge}
	}
	return out
}

func (b dpuBackend) sessions() []*adminv1.Session {
	in := b.dpu.Sessions()
	out := make([]*adminv1.Session, len(in))
	for i, s := range in {
		out[i] = &adminv1.Session{
			Name:        sessionName(s.ID),
			Session:     s.ID,
			Pid:         int64(s.PID),
			Process:     text(s.Process),
			State:       adminv1.SessionState_SESSION_STATE_UP,
			AttachTime:  timestamp(s.OpenedAt),
			Channels:    uint32(s.Channels),
			Sockets:     count(s.Sockets),
			Listeners:   count(s.Listeners),
			Connections: count(s.Connections),
			BytesTx:     s.Traffic.BytesTx,
			BytesRx:     s.Traffic.BytesRx,
		}
	}
	return out
}

var socketKinds = map[string]adminv1.SocketKind{
	dpureport.KindBound:      adminv1.SocketKind_SOCKET_KIND_BOUND,
	dpureport.KindListener:   adminv1.SocketKind_SOCKET_KIND_LISTENER,
	dpureport.KindConnecting: adminv1.SocketKind_SOCKET_KIND_CONNECTING,
	dpureport.KindConnection: adminv1.SocketKind_SOCKET_KIND_CONNECTION,
	dpureport.KindOrphan:     adminv1.SocketKind_SOCKET_KIND_ORPHAN,
	dpureport.KindDatagram:   adminv1.SocketKind_SOCKET_KIND_DATAGRAM,
}

func (b dpuBackend) sockets() []*adminv1.Socket {
	in := b.dpu.Sockets()
	out := make([]*adminv1.Socket, len(in))
	for i, s := range in {
		m := &adminv1.Socket{
			Name:           socketName(s.Session, uint32(s.Shard), s.Handle),
			Session:        s.Session,
			Shard:          uint32(s.Shard),
			Handle:         s.Handle,
			Pid:            int64(s.PID),
			Process:        text(s.Process),
			Kind:           socketKinds[s.Kind],
			State:          s.State,
			Local:          s.Local,
			Peer:           s.Peer,
			Channel:        int32(s.Channel),
			BytesTx:        s.BytesTx,
			BytesRx:        s.BytesRx,
			RxUnreadBytes:  s.RxUnread,
			RxQueuedBytes:  s.RxQueued,
			TxPendingBytes: s.TxPending,
			TxQueuedBytes:  s.TxQueued,
			RttUs:          s.RTTMicros,
			Cwnd:           s.Cwnd,
			Retransmits:    s.Retransmits,
			Holders:        uint32(s.Holders),
			Shared:         s.Shared,

			DroppedDatagrams: s.Dropped,
		}
		if s.Kind == dpureport.KindListener {
			m.Listener = &adminv1.ListenerQueue{
				Unaccepted:  uint32(s.Unaccepted),
				Waiting:     uint32(s.AcceptQueue),
				Backlog:     uint32(s.Backlog),
				Subscribers: uint32(s.Subscribers),
			}
		}
		out[i] = m
	}
	return out
}

func (b dpuBackend) rings() []*adminv1.Ring {
	in := b.dpu.Rings()
	out := make([]*adminv1.Ring, len(in))
	for i, r := range in {
		out[i] = &adminv1.Ring{
			Name:    ringName(r.Session, uint32(r.Channel), uint32(r.Shard)),
			Session: r.Session,
			Channel: uint32(r.Channel),
			Shard:   uint32(r.Shard),
			H2D: &adminv1.RingLevel{
				SizeBytes: uint64(r.H2DSize), UsedBytes: r.H2DUsed,
				ProducedBytes: r.H2DConsumed + r.H2DUsed, Records: r.RecordsH2D,
			},
			D2H: &adminv1.RingLevel{
				SizeBytes: uint64(r.D2HSize), UsedBytes: r.D2HUsed,
				ProducedBytes: r.D2HProduced, Records: r.RecordsD2H,
			},
			Hot:                 r.Hot,
			DoorbellArmed:       r.DoorbellArmed,
			WaitingSockets:      uint32(r.Waiting),
			Interrupts:          r.Interrupts,
			InterruptsModerated: r.Moderated,
		}
	}
	return out
}

func dpuShards(in []dpureport.Shard) []*adminv1.Shard {
	out := make([]*adminv1.Shard, len(in))
	for i, s := range in {
		out[i] = &adminv1.Shard{
			Name:               shardName(uint32(s.Index)),
			Shard:              uint32(s.Index),
			Sessions:           uint32(s.Sessions),
			Sockets:            count(s.Sockets),
			OpenQueues:         uint32(s.OpenQueues),
			HotQueues:          uint32(s.HotQueues),
			Loops:              s.Loops,
			BusyLoops:          s.BusyLoops,
			Spins:              s.Spins,
			Parks:              s.Parks,
			ParkedTime:         durationpb.New(time.Duration(s.ParkedNS)),
			FramesRx:           s.RxFrames,
			FramesTx:           s.TxFrames,
			FramesRxHandedOver: s.RxHanded,
			FramesTxHandedOver: s.TxHanded,
			HandOverFull:       s.HandFull,
			TxHeld:             s.TxHeld,
			TxHeldMax:          s.TxHeldMax,
			Accepts:            s.Accepts,
			Channel:            channelStats(s.Traffic),
		}
	}
	return out
}

func dpuLinks(in []dpureport.Link) []*adminv1.Link {
	out := make([]*adminv1.Link, len(in))
	for i, l := range in {
		out[i] = &adminv1.Link{
			Name:      linkName(i),
			Interface: text(l.Name),
			Driver:    l.Driver,
			Mode:      l.Mode,
			Mac:       l.MAC,
			Mtu:       uint32(l.MTU),
			Queues:    uint32(l.Queues),
			Counters: &adminv1.LinkCounters{
				PacketsRx: l.RxPackets, PacketsTx: l.TxPackets,
				BytesRx: l.RxBytes, BytesTx: l.TxBytes,
				DropsRx: l.RxDropped, DropsTx: l.TxDropped, Kicks: l.Kicks,
			},
		}
	}
	return out
}

// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	adminv1 "pno/proto/pno/admin/v1"
)

func newDPUCollector(b dpuBackend) prometheus.Collector {
	return &collector{
		take: func() snapshot {
			s := b.dpu.Stats()
			return snapshot{
				status: dpuStatus(s, b.dpu.Health()), stats: dpuStats(s),
				shards: dpuShards(s.Shards), links: dpuLinks(s.Links),
			}
		},
		families: dpuFamilies(),
		open:     func(s snapshot) []*adminv1.Counter { return s.stats.GetDpu().GetNetstack() },
		prefix:   "pno_dpu_netstack_",
	}
}

func dpuFamilies() []family {
	all := []family{
		info("pno_dpu_info"),
		gauge("pno_dpu_host_connected", "Whether a host agent is connected.",
			one(func(s snapshot) uint64 { return bit(s.status.GetPeerConnected()) })),
	}
	all = append(all, dpuSessionFamilies()...)
	all = append(all, dpuSocketFamilies()...)
	all = append(all, dpuChannelFamilies()...)
	all = append(all, shardFamilies()...)
	return append(all, linkFamilies()...)
}

func dpuSessionFamilies() []family {
	of := func(get func(*adminv1.DpuSessionStats) uint64) func(snapshot, emit) {
		return one(func(s snapshot) uint64 { return get(s.stats.GetDpu().GetSessions()) })
	}
	return []family{
		gauge("pno_dpu_sessions", "Host processes attached.", of((*adminv1.DpuSessionStats).GetActive)),
		counter("pno_dpu_sessions_opened_total", "Host processes that attached.", of((*adminv1.DpuSessionStats).GetOpened)),
		counter("pno_dpu_sessions_refused_total", "Host processes that were refused.", of((*adminv1.DpuSessionStats).GetRefused)),
		counter("pno_dpu_sessions_violated_total", "Sessions ended for a violation of the channel protocol.", of((*adminv1.DpuSessionStats).GetViolators)),
		counter("pno_dpu_sessions_closed_total", "Sessions ended, by reason.",
			byLabel(func(s snapshot) map[string]uint64 { return s.stats.GetDpu().GetSessions().GetClosedByReason() }), "reason"),
		gauge("pno_dpu_fork_grants", "Grants whose forked child has not attached.", of((*adminv1.DpuSessionStats).GetForkWaits)),
	}
}

func dpuSocketFamilies() []family {
	of := func(get func(*adminv1.DpuSocketStats) uint64) func(snapshot, emit) {
		return one(func(s snapshot) uint64 { return get(s.stats.GetDpu().GetSockets()) })
	}
	return []family{
		gauge("pno_dpu_sockets", "Offloaded sockets of any kind.", of((*adminv1.DpuSocketStats).GetOpen)),
		gauge("pno_dpu_listeners", "Offloaded listeners.", of((*adminv1.DpuSocketStats).GetListeners)),
		gauge("pno_dpu_connections", "Offloaded connections.", of((*adminv1.DpuSocketStats).GetConnections)),
		gauge("pno_dpu_orphans", "Sockets closed by the host that still flush.", of((*adminv1.DpuSocketStats).GetOrphans)),
		gauge("pno_dpu_connections_unaccepted", "Connections announced to a host that it has not accepted.", of((*adminv1.DpuSocketStats).GetUnaccepted)),
		counter("pno_dpu_connections_accepted_total", "Connections given to hosts.", of((*adminv1.DpuSocketStats).GetAccepted)),
		counter("pno_dpu_connections_opened_total", "Connections that hosts opened.", of((*adminv1.DpuSocketStats).GetConnected)),
		counter("pno_dpu_connect_failures_total", "Connections that hosts tried to open in vain.", of((*adminv1.DpuSocketStats).GetConnectFailed)),
		counter("pno_dpu_sockets_closed_total", "Sockets closed.", of((*adminv1.DpuSocketStats).GetClosed)),
		counter("pno_dpu_closes_reset_total", "Closes that had to reset the connection.", of((*adminv1.DpuSocketStats).GetResetsSent)),
		counter("pno_dpu_connections_handed_over_total", "Unaccepted connections given to another subscriber.", of((*adminv1.DpuSocketStats).GetHandedOver)),
		counter("pno_dpu_redirects_total", "Requests answered with another shard's number.", of((*adminv1.DpuSocketStats).GetRedirects)),
		counter("pno_dpu_stream_transmit_bytes_total", "Stream bytes that hosts sent.",
			one(func(s snapshot) uint64 { return s.stats.GetDpu().GetBytesTx() })),
		counter("pno_dpu_stream_receive_bytes_total", "Stream bytes that hosts were given.",
			one(func(s snapshot) uint64 { return s.stats.GetDpu().GetBytesRx() })),
	}
}

func dpuChannelFamilies() []family {
	of := func(get func(*adminv1.ChannelStats) uint64) func(snapshot, emit) {
		return one(func(s snapshot) uint64 { return get(s.stats.GetDpu().GetChannel()) })
	}
	pair := func(a string, getA func(*adminv1.ChannelStats) uint64, b string, getB func(*adminv1.ChannelStats) uint64) func(snapshot, emit) {
		return func(s snapshot, e emit) {
			c := s.stats.GetDpu().GetChannel()
			e(getA(c), a)
			e(getB(c), b)
		}
	}
	return []family{
		counter("pno_dpu_records_total", "Records exchanged with hosts: h2d from them, d2h to them.",
			pair("h2d", (*adminv1.ChannelStats).GetRecordsH2D, "d2h", (*adminv1.ChannelStats).GetRecordsD2H), "direction"),
		counter("pno_dpu_records_unknown_total", "Records dropped because their socket was gone.", of((*adminv1.ChannelStats).GetRecordsUnknown)),
		counter("pno_dpu_dma_operations_total", "DMA operations on host memory.",
			pair("read", (*adminv1.ChannelStats).GetDmaReads, "write", (*adminv1.ChannelStats).GetDmaWrites), "operation"),
		counter("pno_dpu_dma_bytes_total", "Bytes moved by DMA.",
			pair("read", (*adminv1.ChannelStats).GetDmaReadBytes, "write", (*adminv1.ChannelStats).GetDmaWriteBytes), "operation"),
		counter("pno_dpu_doorbells_total", "Doorbells taken.", of((*adminv1.ChannelStats).GetDoorbells)),
		counter("pno_dpu_interrupts_total", "Interrupts raised at hosts.", of((*adminv1.ChannelStats).GetInterrupts)),
		counter("pno_dpu_interrupts_moderated_total", "Interrupts put off by moderation.", of((*adminv1.ChannelStats).GetInterruptsModerated)),
		counter("pno_dpu_bytes_spliced_total", "Payload that went from one socket to another within the DPU.", of((*adminv1.ChannelStats).GetBytesSpliced)),
		counter("pno_dpu_ring_full_total", "Times that a socket had to wait for room in a ring.", of((*adminv1.ChannelStats).GetRingFull)),
	}
}

func shardFamilies() []family {
	each := func(get func(*adminv1.Shard) uint64) func(snapshot, emit) {
		return func(s snapshot, e emit) {
			for _, sh := range s.shards {
				e(get(sh), strconv.FormatUint(uint64(sh.GetShard()), 10))
			}
		}
	}
	return []family{
		gauge("pno_dpu_shard_sockets", "Sockets on the shard.", each((*adminv1.Shard).GetSockets), "shard"),
		counter("pno_dpu_shard_loops_total", "Turns of the shard's loop.", each((*adminv1.Shard).GetLoops), "shard"),
		counter("pno_dpu_shard_busy_loops_total", "Turns that found something to do.", each((*adminv1.Shard).GetBusyLoops), "shard"),
		counter("pno_dpu_shard_parks_total", "Times the shard went to sleep.", each((*adminv1.Shard).GetParks), "shard"),
		counter("pno_dpu_shard_accepts_total", "Connections the shard took from the wire.", each((*adminv1.Shard).GetAccepts), "shard"),
		counter("pno_dpu_shard_handover_drops_total", "Frames dropped because another shard's queue was full.", each((*adminv1.Shard).GetHandOverFull), "shard"),
		counter("pno_dpu_shard_frames_held_total", "Frames that had to wait for the link.", each((*adminv1.Shard).GetTxHeld), "shard"),
	}
}

func linkFamilies() []family {
	each := func(get func(*adminv1.LinkCounters) uint64) func(snapshot, emit) {
		return func(s snapshot, e emit) {
			for i, l := range s.links {
				e(get(l.GetCounters()), strconv.Itoa(i), l.GetInterface())
			}
		}
	}
	link := func(name, help string, get func(*adminv1.LinkCounters) uint64) family {
		return counter(name, help, each(get), "link", "interface")
	}
	return []family{
		link("pno_dpu_link_receive_packets_total", "Packets received.", (*adminv1.LinkCounters).GetPacketsRx),
		link("pno_dpu_link_transmit_packets_total", "Packets sent.", (*adminv1.LinkCounters).GetPacketsTx),
		link("pno_dpu_link_receive_bytes_total", "Bytes received, link-layer headers included.", (*adminv1.LinkCounters).GetBytesRx),
		link("pno_dpu_link_transmit_bytes_total", "Bytes sent, link-layer headers included.", (*adminv1.LinkCounters).GetBytesTx),
		link("pno_dpu_link_receive_drops_total", "Packets dropped before the stack saw them.", (*adminv1.LinkCounters).GetDropsRx),
		link("pno_dpu_link_transmit_drops_total", "Packets dropped on the way out.", (*adminv1.LinkCounters).GetDropsTx),
		link("pno_dpu_link_kicks_total", "System calls made to move packets.", (*adminv1.LinkCounters).GetKicks),
	}
}

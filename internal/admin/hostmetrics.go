// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"github.com/prometheus/client_golang/prometheus"

	adminv1 "pno/proto/pno/admin/v1"
)

func newHostCollector(b hostBackend) prometheus.Collector {
	return &collector{
		take: func() snapshot {
			r := b.host.Report()
			return snapshot{status: hostStatus(r), stats: hostStats(r)}
		},
		families: hostFamilies(),
		open:     func(s snapshot) []*adminv1.Counter { return s.stats.GetHost().GetShim() },
		prefix:   "pno_host_shim_",
	}
}

func hostFamilies() []family {
	host := func(get func(*adminv1.HostStats) uint64) func(snapshot, emit) {
		return one(func(s snapshot) uint64 { return get(s.stats.GetHost()) })
	}
	labelled := func(get func(*adminv1.HostStats) map[string]uint64) func(snapshot, emit) {
		return byLabel(func(s snapshot) map[string]uint64 { return get(s.stats.GetHost()) })
	}
	agent := func(get func(*adminv1.AgentStats) uint64) func(snapshot, emit) {
		return one(func(s snapshot) uint64 { return get(s.stats.GetHost().GetAgent()) })
	}
	return []family{
		info("pno_host_info"),
		gauge("pno_host_dpu_connected", "Whether the link to the DPU is up.",
			host(func(h *adminv1.HostStats) uint64 { return bit(h.GetDpuLink().GetUp()) })),
		counter("pno_host_dpu_losses_total", "Times the link to the DPU was lost.",
			host(func(h *adminv1.HostStats) uint64 { return h.GetDpuLink().GetLosses() })),

		gauge("pno_host_sessions", "Processes attached.",
			host(func(h *adminv1.HostStats) uint64 { return h.GetSessions().GetActive() })),
		counter("pno_host_sessions_attached_total", "Processes that attached.",
			host(func(h *adminv1.HostStats) uint64 { return h.GetSessions().GetAttached() })),
		counter("pno_host_sessions_refused_total", "Processes that were refused, by reason.",
			labelled(func(h *adminv1.HostStats) map[string]uint64 { return h.GetSessions().GetRefused() }), "reason"),
		counter("pno_host_sessions_ended_total", "Sessions that ended, by reason.",
			labelled(func(h *adminv1.HostStats) map[string]uint64 { return h.GetSessions().GetEnded() }), "reason"),
		counter("pno_host_processes_bypassing_total", "Processes that were to be offloaded and passed it by, by reason.",
			labelled(func(h *adminv1.HostStats) map[string]uint64 { return h.GetSessions().GetBypassing() }), "reason"),

		counter("pno_host_sockets_offloaded_total", "Sockets that went through the offload.",
			host(func(h *adminv1.HostStats) uint64 { return h.GetSockets().GetOffloaded() })),
		counter("pno_host_sockets_kernel_total", "Sockets left to the kernel, by reason.",
			labelled(func(h *adminv1.HostStats) map[string]uint64 { return h.GetSockets().GetKernel() }), "reason"),
		gauge("pno_host_sockets_held", "Sockets known by cookie, so that they can move between processes.",
			host(func(h *adminv1.HostStats) uint64 { return h.GetSockets().GetHeld() })),
		counter("pno_host_sockets_moved_total", "Sockets that moved between processes.",
			host(func(h *adminv1.HostStats) uint64 { return h.GetSockets().GetMoved() })),
		counter("pno_host_stream_transmit_bytes_total", "Stream bytes that applications sent through the offload.",
			host((*adminv1.HostStats).GetBytesTx)),
		counter("pno_host_stream_receive_bytes_total", "Stream bytes that applications received through the offload.",
			host((*adminv1.HostStats).GetBytesRx)),

		counter("pno_host_protocol_errors_total", "Attach messages that made no sense.", agent((*adminv1.AgentStats).GetProtocolErrors)),
		counter("pno_host_channels_opened_total", "Channels opened.", agent((*adminv1.AgentStats).GetChannelsOpened)),
		counter("pno_host_forks_total", "Forks announced.", agent((*adminv1.AgentStats).GetForks)),
		counter("pno_host_forks_adopted_total", "Forked children that took their sockets over.", agent((*adminv1.AgentStats).GetForksAdopted)),
		counter("pno_host_forks_dropped_total", "Forked children that never came.", agent((*adminv1.AgentStats).GetForksDropped)),
		counter("pno_host_sessions_readopted_total", "Sessions taken over after a restart of the host agent.", agent((*adminv1.AgentStats).GetReadopted)),
		counter("pno_host_policy_reloads_total", "Times the policy was read again.", agent((*adminv1.AgentStats).GetPolicyReloads)),
		counter("pno_host_policy_errors_total", "Times that reading the policy failed.", agent((*adminv1.AgentStats).GetPolicyErrors)),
	}
}

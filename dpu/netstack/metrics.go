// SPDX-License-Identifier: Apache-2.0

package netstack

import (
	"gvisor.dev/gvisor/pkg/tcpip"

	"pno/dpu/report"
)

// metric is one counter of a stack.
type metric struct {
	name, help string
	gauge      bool
	value      func(*tcpip.Stats) *tcpip.StatCounter
}

// metrics is the one list of what is reported of a stack.
var metrics = []metric{
	{"tcp_active_opens", "connections opened by connect", false, func(s *tcpip.Stats) *tcpip.StatCounter { return s.TCP.ActiveConnectionOpenings }},
	{"tcp_passive_opens", "connections opened by peers", false, func(s *tcpip.Stats) *tcpip.StatCounter { return s.TCP.PassiveConnectionOpenings }},
	{"tcp_established", "connections in state ESTABLISHED", true, func(s *tcpip.Stats) *tcpip.StatCounter { return s.TCP.CurrentEstablished }},
	{"tcp_connected", "connections in any connected state, but for those of tcp_time_wait", true, func(s *tcpip.Stats) *tcpip.StatCounter { return s.TCP.CurrentConnected }},
	{"tcp_established_resets", "connections reset while established", false, func(s *tcpip.Stats) *tcpip.StatCounter { return s.TCP.EstablishedResets }},
	{"tcp_established_timeouts", "connections given up by keep-alive", false, func(s *tcpip.Stats) *tcpip.StatCounter { return s.TCP.EstablishedTimedout }},
	{"tcp_failed_opens", "connects and listens that failed", false, func(s *tcpip.Stats) *tcpip.StatCounter { return s.TCP.FailedConnectionAttempts }},
	{"tcp_listen_overflow_syn_drops", "SYNs dropped because an accept queue was full", false, func(s *tcpip.Stats) *tcpip.StatCounter { return s.TCP.ListenOverflowSynDrop }},
	{"tcp_listen_overflow_ack_drops", "handshakes dropped because an accept queue was full", false, func(s *tcpip.Stats) *tcpip.StatCounter { return s.TCP.ListenOverflowAckDrop }},
	{"tcp_syn_cookies_sent", "SYN cookies sent", false, func(s *tcpip.Stats) *tcpip.StatCounter { return s.TCP.ListenOverflowSynCookieSent }},
	{"tcp_syn_cookies_received", "valid SYN cookies received", false, func(s *tcpip.Stats) *tcpip.StatCounter { return s.TCP.ListenOverflowSynCookieRcvd }},
	{"tcp_segments_received", "valid segments received", false, func(s *tcpip.Stats) *tcpip.StatCounter { return s.TCP.ValidSegmentsReceived }},
	{"tcp_segments_invalid", "malformed segments received", false, func(s *tcpip.Stats) *tcpip.StatCounter { return s.TCP.InvalidSegmentsReceived }},
	{"tcp_segments_sent", "segments sent", false, func(s *tcpip.Stats) *tcpip.StatCounter { return s.TCP.SegmentsSent }},
	{"tcp_segment_send_errors", "segments that the link refused", false, func(s *tcpip.Stats) *tcpip.StatCounter { return s.TCP.SegmentSendErrors }},
	{"tcp_resets_sent", "resets sent", false, func(s *tcpip.Stats) *tcpip.StatCounter { return s.TCP.ResetsSent }},
	{"tcp_resets_received", "resets received", false, func(s *tcpip.Stats) *tcpip.StatCounter { return s.TCP.ResetsReceived }},
	{"tcp_retransmits", "segments sent again", false, func(s *tcpip.Stats) *tcpip.StatCounter { return s.TCP.Retransmits }},
	{"tcp_fast_recoveries", "recoveries by duplicate acknowledgements", false, func(s *tcpip.Stats) *tcpip.StatCounter { return s.TCP.FastRecovery }},
	{"tcp_sack_recoveries", "recoveries by selective acknowledgements", false, func(s *tcpip.Stats) *tcpip.StatCounter { return s.TCP.SACKRecovery }},
	{"tcp_tail_loss_recoveries", "recoveries by a tail loss probe", false, func(s *tcpip.Stats) *tcpip.StatCounter { return s.TCP.TLPRecovery }},
	{"tcp_fast_retransmits", "segments sent again in fast recovery", false, func(s *tcpip.Stats) *tcpip.StatCounter { return s.TCP.FastRetransmit }},
	{"tcp_timeouts", "retransmission timeouts", false, func(s *tcpip.Stats) *tcpip.StatCounter { return s.TCP.Timeouts }},
	{"tcp_spurious_recoveries", "recoveries found needless", false, func(s *tcpip.Stats) *tcpip.StatCounter { return s.TCP.SpuriousRecovery }},
	{"tcp_checksum_errors", "segments dropped for a wrong checksum", false, func(s *tcpip.Stats) *tcpip.StatCounter { return s.TCP.ChecksumErrors }},
	{"tcp_port_failures", "ports that could not be reserved", false, func(s *tcpip.Stats) *tcpip.StatCounter { return s.TCP.FailedPortReservations }},
	{"udp_received", "datagrams received", false, func(s *tcpip.Stats) *tcpip.StatCounter { return s.UDP.PacketsReceived }},
	{"udp_sent", "datagrams sent", false, func(s *tcpip.Stats) *tcpip.StatCounter { return s.UDP.PacketsSent }},
	{"udp_no_port", "datagrams to ports that nobody has", false, func(s *tcpip.Stats) *tcpip.StatCounter { return s.UDP.UnknownPortErrors }},
	{"udp_receive_drops", "datagrams dropped because a socket's reader is too slow", false, func(s *tcpip.Stats) *tcpip.StatCounter { return s.UDP.ReceiveBufferErrors }},
	{"udp_send_errors", "datagrams that could not be sent", false, func(s *tcpip.Stats) *tcpip.StatCounter { return s.UDP.PacketSendErrors }},
	{"udp_malformed", "malformed datagrams received", false, func(s *tcpip.Stats) *tcpip.StatCounter { return s.UDP.MalformedPacketsReceived }},
	{"udp_checksum_errors", "datagrams dropped for a wrong checksum", false, func(s *tcpip.Stats) *tcpip.StatCounter { return s.UDP.ChecksumErrors }},
	{"transport_dropped", "segments dropped because a socket's queue was full", false, func(s *tcpip.Stats) *tcpip.StatCounter { return s.DroppedPackets }},
	{"ip_received", "packets received", false, func(s *tcpip.Stats) *tcpip.StatCounter { return s.IP.PacketsReceived }},
	{"ip_delivered", "packets delivered to a transport", false, func(s *tcpip.Stats) *tcpip.StatCounter { return s.IP.PacketsDelivered }},
	{"ip_sent", "packets sent", false, func(s *tcpip.Stats) *tcpip.StatCounter { return s.IP.PacketsSent }},
	{"ip_send_errors", "packets that could not be sent", false, func(s *tcpip.Stats) *tcpip.StatCounter { return s.IP.OutgoingPacketErrors }},
	{"ip_malformed", "malformed packets received", false, func(s *tcpip.Stats) *tcpip.StatCounter { return s.IP.MalformedPacketsReceived }},
	{"ip_wrong_destination", "packets for other addresses", false, func(s *tcpip.Stats) *tcpip.StatCounter { return s.IP.InvalidDestinationAddressesReceived }},
	{"arp_requests_received", "ARP requests received", false, func(s *tcpip.Stats) *tcpip.StatCounter { return s.ARP.RequestsReceived }},
	{"arp_replies_received", "ARP replies received", false, func(s *tcpip.Stats) *tcpip.StatCounter { return s.ARP.RepliesReceived }},
	{"link_tx_no_buffer", "packets refused because too many waited for the link", false, func(s *tcpip.Stats) *tcpip.StatCounter { return s.NICs.TxPacketsDroppedNoBufferSpace }},
}

// Counters adds the stack's counters to list, which is either empty or the
// result for another shard.
func (s *Stack) Counters(list []report.Counter) []report.Counter {
	stats := []tcpip.Stats{s.Stats()}
	if s.foreign.Stack != nil {
		stats = append(stats, s.foreign.Stats())
	}
	if len(list) == 0 {
		for _, m := range metrics {
			list = append(list, report.Counter{Name: m.name, Help: m.help, Gauge: m.gauge})
		}
		list = append(list,
			report.Counter{Name: "tcp_segments_merged", Help: "segments received that went through the stack with the one before"},
			report.Counter{Name: "tcp_time_wait", Help: "connections in TIME-WAIT without an endpoint", Gauge: true},
			report.Counter{Name: "tcp_time_wait_overflows", Help: "connections whose TIME-WAIT ended early because there were too many"},
			report.Counter{Name: "tcp_time_wait_acks_skipped", Help: "bare acknowledgements in TIME-WAIT not answered because one was just before"})
	}
	for i, m := range metrics {
		for k := range stats {
			list[i].Value += m.value(&stats[k]).Value()
		}
	}
	n, overflows, unechoed := s.flows.timeWaiting()
	for i, v := range []uint64{s.merged.Value(), n, overflows, unechoed} {
		list[len(metrics)+i].Value += v
	}
	return list
}

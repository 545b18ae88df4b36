// SPDX-License-Identifier: Apache-2.0

// Package report defines what a running dpud tells about itself: plain values,
// filled by package dpu on request and read by the admin API, the metrics
// endpoint and tests. A value is a copy; nobody owns it after it was returned.
// JSON names are stable and in snake_case.
package report

import "time"

// Stats is the whole DPU in numbers. Counters only grow; gauges are named so.
type Stats struct {
	Time          time.Time     `json:"time"`
	StartedAt     time.Time     `json:"started_at"`
	UptimeSeconds float64       `json:"uptime_seconds"`
	Version       string        `json:"version"`
	Sessions      SessionTotals `json:"sessions"`
	Sockets       SocketTotals  `json:"sockets"`
	Traffic       Traffic       `json:"traffic"`
	Shards        []Shard       `json:"shards"`
	Links         []Link        `json:"links"`
	Netstack      []Counter     `json:"netstack"` // summed over the shards, in the order of the metrics table
	Memory        Memory        `json:"memory"`
}

// SessionTotals counts host processes.
type SessionTotals struct {
	Open      int               `json:"open"` // gauge
	Opened    uint64            `json:"opened"`
	Closed    uint64            `json:"closed"`
	Refused   uint64            `json:"refused"`
	Violators uint64            `json:"violators"`  // ended because of a protocol violation
	ByReason  map[string]uint64 `json:"by_reason"`  // why sessions ended
	ForkWaits int               `json:"fork_waits"` // gauge: fork grants whose child has not attached
}

// SocketTotals counts sockets over all sessions and shards.
type SocketTotals struct {
	Open          int    `json:"open"`        // gauge, all kinds
	Listeners     int    `json:"listeners"`   // gauge
	Connections   int    `json:"connections"` // gauge
	Orphans       int    `json:"orphans"`     // gauge: closed by the host, still flushing
	Unaccepted    int    `json:"unaccepted"`  // gauge: announced, accept() not called yet
	Accepted      uint64 `json:"accepted"`    // connections given to a host
	Connected     uint64 `json:"connected"`
	ConnectFail   uint64 `json:"connect_failed"`
	Closed        uint64 `json:"closed"`
	ResetsSent    uint64 `json:"resets_sent"`        // closes that had to reset
	HandedOver    uint64 `json:"handed_over"`        // unaccepted connections given to another subscriber
	Redirects     uint64 `json:"redirects"`          // requests answered with another shard's number
	Datagram      int    `json:"datagram"`           // UDP sockets, gauge
	DgramsTooLong uint64 `json:"datagrams_too_long"` // received datagrams dropped: longer than a window
	DgramsUnsent  uint64 `json:"datagrams_unsent"`   // no route, too long, or a wrong source address
}

// Traffic counts application payload.
type Traffic struct {
	BytesRx     uint64 `json:"bytes_rx"`      // towards the host
	BytesTx     uint64 `json:"bytes_tx"`      // from the host
	Spliced     uint64 `json:"bytes_spliced"` // between sockets, without crossing to the host
	RecordsH2D  uint64 `json:"records_h2d"`
	RecordsD2H  uint64 `json:"records_d2h"`
	Interrupts  uint64 `json:"interrupts"`
	Moderated   uint64 `json:"interrupts_moderated"` // times an interrupt was put off
	Doorbells   uint64 `json:"doorbells"`            // doorbell wake-ups taken
	UnknownSock uint64 `json:"unknown_handles"`      // records dropped: they crossed a close
	RingFull    uint64 `json:"ring_full"`            // a socket had to wait for ring space

	DMAReads      uint64 `json:"dma_reads"` // operations over the transport
	DMAWrites     uint64 `json:"dma_writes"`
	DMAReadBytes  uint64 `json:"dma_read_bytes"`
	DMAWriteBytes uint64 `json:"dma_write_bytes"`
}

// Shard is one core of the DPU.
type Shard struct {
	Index      int     `json:"index"`
	Sessions   int     `json:"sessions"`    // gauge
	Sockets    int     `json:"sockets"`     // gauge
	HotQueues  int     `json:"hot_queues"`  // gauge: queue pairs polled each turn
	OpenQueues int     `json:"open_queues"` // gauge
	Loops      uint64  `json:"loops"`
	BusyLoops  uint64  `json:"busy_loops"`
	Spins      uint64  `json:"spins"`
	Parks      uint64  `json:"parks"`
	ParkedNS   uint64  `json:"parked_ns"`
	RxFrames   uint64  `json:"rx_frames"`
	TxFrames   uint64  `json:"tx_frames"`
	RxHanded   uint64  `json:"rx_frames_handed_over"` // received here, another shard's
	TxHanded   uint64  `json:"tx_frames_handed_over"` // sent through another shard's queue
	HandFull   uint64  `json:"hand_over_full"`        // frames dropped: the other shard's queue was full
	TxHeld     uint64  `json:"tx_held"`               // packets that waited for the link
	TxHeldMax  uint64  `json:"tx_held_max"`           // most at once
	Accepts    uint64  `json:"accepts"`
	Traffic    Traffic `json:"traffic"`
}

// Link is one network port.
type Link struct {
	Name      string `json:"name"`
	Driver    string `json:"driver"`         // af_xdp, af_packet, wire
	Mode      string `json:"mode,omitempty"` // copy or zerocopy
	MAC       string `json:"mac"`
	MTU       int    `json:"mtu"`
	Queues    int    `json:"queues"`
	RxPackets uint64 `json:"rx_packets"`
	RxBytes   uint64 `json:"rx_bytes"`
	TxPackets uint64 `json:"tx_packets"`
	TxBytes   uint64 `json:"tx_bytes"`
	RxDropped uint64 `json:"rx_dropped"`
	TxDropped uint64 `json:"tx_dropped"`
	Kicks     uint64 `json:"kicks"`
}

// Counter is one counter of the network stack.
type Counter struct {
	Name  string `json:"name"` // for example tcp_retransmits
	Help  string `json:"help"`
	Value uint64 `json:"value"`
	Gauge bool   `json:"gauge,omitempty"`
}

// Memory is the daemon's own heap, in bytes.
type Memory struct {
	Heap       uint64 `json:"heap"`
	Sys        uint64 `json:"sys"`
	Goroutines int    `json:"goroutines"`
	GCs        uint64 `json:"gcs"`
}

// Socket kinds.
const (
	KindBound      = "bound"
	KindListener   = "listener"
	KindConnecting = "connecting"
	KindConnection = "connection"
	KindOrphan     = "orphan"
	KindDatagram   = "datagram" // UDP; its state is ESTAB while it is connected
)

// Socket is one socket of one shard, as one holder sees it.
type Socket struct {
	Session     uint64 `json:"session"`
	PID         int    `json:"pid"`
	Process     string `json:"process"`
	Shard       int    `json:"shard"`
	Handle      uint32 `json:"handle"`
	Channel     int    `json:"channel"` // home; -1 when another session is the home
	Kind        string `json:"kind"`
	State       string `json:"state"` // TCP state as in ss: ESTAB, LISTEN, …
	Local       string `json:"local"`
	Peer        string `json:"peer"`
	BytesRx     uint64 `json:"bytes_rx"`
	BytesTx     uint64 `json:"bytes_tx"`
	RxUnread    uint64 `json:"rx_unread"`   // sent to the host, not reported consumed
	RxQueued    uint64 `json:"rx_queued"`   // waiting in the stack
	TxPending   uint64 `json:"tx_pending"`  // from the host, not yet taken by the stack
	TxQueued    uint64 `json:"tx_queued"`   // in the stack's send queue
	Holders     int    `json:"holders"`     // sessions that hold it
	Shared      bool   `json:"shared"`      // another process may claim it
	Unaccepted  int    `json:"unaccepted"`  // listener: announced, not accepted
	AcceptQueue int    `json:"accept_wait"` // listener: established, no subscriber has room
	Backlog     int    `json:"backlog"`
	Subscribers int    `json:"subscribers"`
	RTTMicros   uint64 `json:"rtt_us"`
	Cwnd        uint32 `json:"cwnd"`
	Retransmits uint64 `json:"retransmits"`
	Waiting     int    `json:"waiting"` // datagrams that wait in the stack
	Dropped     uint64 `json:"dropped"` // datagrams dropped: the reader is too slow
}

// Ring is one queue pair.
type Ring struct {
	Session       uint64 `json:"session"`
	Channel       int    `json:"channel"`
	Shard         int    `json:"shard"`
	Hot           bool   `json:"hot"`
	DoorbellArmed bool   `json:"doorbell_armed"`
	H2DSize       uint32 `json:"h2d_size"`
	H2DUsed       uint64 `json:"h2d_used"` // produced by the host, not consumed
	H2DConsumed   uint64 `json:"h2d_consumed"`
	D2HSize       uint32 `json:"d2h_size"`
	D2HUsed       uint64 `json:"d2h_used"` // produced, not given back by the host
	D2HProduced   uint64 `json:"d2h_produced"`
	Waiting       int    `json:"waiting"` // sockets waiting for ring space
	RecordsH2D    uint64 `json:"records_h2d"`
	RecordsD2H    uint64 `json:"records_d2h"`
	Interrupts    uint64 `json:"interrupts"`
	Moderated     uint64 `json:"interrupts_moderated"`
}

// Session is one host process.
type Session struct {
	ID          uint64    `json:"id"`
	PID         int       `json:"pid"`
	Process     string    `json:"process"`
	OpenedAt    time.Time `json:"opened_at"`
	Channels    int       `json:"channels"` // open
	Shards      int       `json:"shards"`
	H2DSize     uint32    `json:"h2d_size"`
	D2HSize     uint32    `json:"d2h_size"`
	RxWindow    uint32    `json:"rx_window"`
	TxWindow    uint32    `json:"tx_window"`
	Sockets     int       `json:"sockets"`
	Listeners   int       `json:"listeners"`
	Connections int       `json:"connections"`
	Traffic     Traffic   `json:"traffic"`
}

// Health says whether the DPU serves, and if not, why.
type Health struct {
	Serving bool          `json:"serving"`
	Reasons []string      `json:"reasons,omitempty"`
	Control bool          `json:"control"` // a host agent is connected
	Shards  []ShardHealth `json:"shards"`
}

// ShardHealth is one loop's sign of life.
type ShardHealth struct {
	Index   int     `json:"index"`
	Alive   bool    `json:"alive"`
	ReplyMS float64 `json:"reply_ms"` // how long the loop took to answer
}

// Add adds o to t.
func (t *SocketTotals) Add(o SocketTotals) {
	t.Open += o.Open
	t.Listeners += o.Listeners
	t.Connections += o.Connections
	t.Orphans += o.Orphans
	t.Unaccepted += o.Unaccepted
	t.Accepted += o.Accepted
	t.Connected += o.Connected
	t.ConnectFail += o.ConnectFail
	t.Closed += o.Closed
	t.ResetsSent += o.ResetsSent
	t.HandedOver += o.HandedOver
	t.Redirects += o.Redirects
	t.Datagram += o.Datagram
	t.DgramsTooLong += o.DgramsTooLong
	t.DgramsUnsent += o.DgramsUnsent
}

// Merge adds the share of one shard.
func (s *Session) Merge(o Session) {
	s.Channels = max(s.Channels, o.Channels)
	s.Sockets += o.Sockets
	s.Listeners += o.Listeners
	s.Connections += o.Connections
	s.Traffic.Add(o.Traffic)
}

// Add adds o to t.
func (t *Traffic) Add(o Traffic) {
	t.BytesRx += o.BytesRx
	t.BytesTx += o.BytesTx
	t.Spliced += o.Spliced
	t.RecordsH2D += o.RecordsH2D
	t.RecordsD2H += o.RecordsD2H
	t.Interrupts += o.Interrupts
	t.Moderated += o.Moderated
	t.Doorbells += o.Doorbells
	t.UnknownSock += o.UnknownSock
	t.RingFull += o.RingFull
	t.DMAReads += o.DMAReads
	t.DMAWrites += o.DMAWrites
	t.DMAReadBytes += o.DMAReadBytes
	t.DMAWriteBytes += o.DMAWriteBytes
}

// SPDX-License-Identifier: Apache-2.0

// Package admintest holds a DPU and a host agent that report fixed numbers,
// for tests of the admin API and of what reads it. The values never change, so
// that text made of them can be held by golden files; they are as large and as
// odd as real ones (IPv6, a listener, a slow reader, reasons with spaces).
//
// A value may be used by any goroutine.
package admintest

import (
	"time"

	dpureport "pno/dpu/report"
	"pno/host/policy"
	hostreport "pno/host/report"
	"pno/offload"
)

// Start is when the daemons of this package began, and Now when they report.
var (
	Start = time.Date(2026, 3, 1, 8, 0, 0, 0, time.UTC)
	Now   = Start.Add(90 * time.Minute)
)

// Version is the build that they name.
const Version = "v1.2.3"

// DPU is a dpud with two processes, two shards and one port.
type DPU struct{}

// Health is good.
func (DPU) Health() dpureport.Health {
	return dpureport.Health{Serving: true, Control: true}
}

// Stats are the counters.
func (DPU) Stats() dpureport.Stats {
	shard := func(i int, sockets int, records uint64) dpureport.Shard {
		return dpureport.Shard{
			Index: i, Sessions: 2, Sockets: sockets, HotQueues: 1, OpenQueues: 2,
			Loops: 900_000, BusyLoops: 410_000, Spins: 120_000, Parks: 5_100, ParkedNS: 61_500_000_000,
			RxFrames: records * 2, TxFrames: records, RxHanded: 12, TxHanded: 3, TxHeld: 40, TxHeldMax: 9,
			Accepts: 6_000,
			Traffic: dpureport.Traffic{
				BytesRx: 500_000, BytesTx: 10_500_000, RecordsH2D: records, RecordsD2H: records / 2,
				Interrupts: 900, Moderated: 4_000, Doorbells: 800, UnknownSock: 1, RingFull: 7, Spliced: 3_000_000,
			},
		}
	}
	return dpureport.Stats{
		Time: Now, StartedAt: Start, UptimeSeconds: Now.Sub(Start).Seconds(), Version: Version,
		Sessions: dpureport.SessionTotals{
			Open: 2, Opened: 5, Closed: 3, Refused: 1, Violators: 1,
			ByReason: map[string]uint64{"process exited": 2, "record beyond the ring": 1}, ForkWaits: 1,
		},
		Sockets: dpureport.SocketTotals{
			Open: 6, Listeners: 2, Connections: 3, Orphans: 1, Unaccepted: 1,
			Accepted: 12_000, Connected: 340, ConnectFail: 4, Closed: 12_337, ResetsSent: 21, HandedOver: 2, Redirects: 5,
		},
		Traffic: dpureport.Traffic{
			BytesRx: 1_048_576, BytesTx: 21_474_836_480, RecordsH2D: 160_000, RecordsD2H: 80_000,
			Interrupts: 1_800, Moderated: 8_000, Doorbells: 1_600, UnknownSock: 2, RingFull: 14, Spliced: 5_000_000,
			DMAReads: 190_000, DMAWrites: 96_000, DMAReadBytes: 21_500_000_000, DMAWriteBytes: 9_000_000,
		},
		Shards: []dpureport.Shard{shard(0, 4, 100_000), shard(1, 2, 60_000)},
		Links: []dpureport.Link{{
			Name: "dpu0", Driver: "af_xdp", Mode: "zerocopy", MAC: "02:00:00:00:00:01", MTU: 1500, Queues: 2,
			RxPackets: 320_000, RxBytes: 25_600_000, TxPackets: 160_000, TxBytes: 22_000_000_000,
			RxDropped: 6, TxDropped: 0, Kicks: 2_500,
		}},
		Netstack: []dpureport.Counter{
			{Name: "tcp_segments_received", Help: "TCP segments received.", Value: 319_000},
			{Name: "tcp_segments_sent", Help: "TCP segments sent.", Value: 159_500},
			{Name: "tcp_retransmits", Help: "TCP segments sent again.", Value: 17},
			{Name: "tcp_current_established", Help: "TCP connections established.", Value: 3, Gauge: true},
		},
		Memory: dpureport.Memory{Heap: 48 << 20, Sys: 96 << 20, Goroutines: 14, GCs: 22},
	}
}

// Sessions are the attached processes.
func (DPU) Sessions() []dpureport.Session {
	session := func(id uint64, pid int, name string, sockets, listeners int, tx, rx uint64) dpureport.Session {
		l := offload.DefaultLayout(2)
		return dpureport.Session{
			ID: id, PID: pid, Process: name, OpenedAt: Start.Add(time.Duration(pid) * time.Second),
			Channels: 1, Shards: 2, H2DSize: l.H2DSize, D2HSize: l.D2HSize, RxWindow: l.RxWindow, TxWindow: l.TxWindow,
			Sockets: sockets, Listeners: listeners, Connections: sockets - listeners,
			Traffic: dpureport.Traffic{BytesTx: tx, BytesRx: rx},
		}
	}
	return []dpureport.Session{
		session(7, 4711, "nginx", 4, 1, 20_000_000_000, 600_000),
		session(9, 815, "haproxy", 2, 1, 1_474_836_480, 448_576),
	}
}

// Sockets are of every kind.
func (DPU) Sockets() []dpureport.Socket {
	nginx := dpureport.Socket{Session: 7, PID: 4711, Process: "nginx", Holders: 1}
	conn := func(shard int, handle uint32, state, local, peer string) dpureport.Socket {
		s := nginx
		s.Shard, s.Handle, s.Kind, s.State, s.Local, s.Peer = shard, handle, dpureport.KindConnection, state, local, peer
		s.BytesRx, s.BytesTx, s.RTTMicros, s.Cwnd = 96, 10_485_760, 230, 42
		return s
	}
	listener := nginx
	listener.Handle, listener.Kind, listener.State = 0x80000001, dpureport.KindListener, "LISTEN"
	listener.Local, listener.Unaccepted, listener.AcceptQueue, listener.Backlog, listener.Subscribers = "198.18.0.2:80", 1, 2, 511, 1
	listener.Shared, listener.Holders, listener.Channel = true, 2, -1

	slow := conn(0, 0x00000003, "ESTAB", "198.18.0.2:80", "198.18.0.101:40002")
	slow.RxUnread, slow.RxQueued, slow.TxPending, slow.TxQueued, slow.Retransmits = 4_096, 0, 131_072, 65_536, 3
	orphan := conn(1, 0x00000005, "FIN-WAIT-1", "198.18.0.2:80", "198.18.0.102:40003")
	orphan.Kind, orphan.TxQueued = dpureport.KindOrphan, 1_448

	six := dpureport.Socket{
		Session: 9, PID: 815, Process: "haproxy", Shard: 1, Handle: 0x80000002, Kind: dpureport.KindListener,
		State: "LISTEN", Local: "[2001:db8::2]:443", Backlog: 4096, Subscribers: 2, Holders: 1,
	}
	out := dpureport.Socket{
		Session: 9, PID: 815, Process: "haproxy", Handle: 0x80000403, Channel: 1, Kind: dpureport.KindConnecting,
		State: "SYN-SENT", Local: "198.18.0.2:51000", Peer: "198.18.0.200:8080", Holders: 1,
	}
	return []dpureport.Socket{
		out, six, // not in order, as a busy DPU gives them
		listener, conn(0, 0x00000002, "ESTAB", "198.18.0.2:80", "198.18.0.100:40001"), slow, orphan,
	}
}

// Rings are the queue pairs.
func (DPU) Rings() []dpureport.Ring {
	ring := func(session uint64, channel, shard int, hot bool) dpureport.Ring {
		return dpureport.Ring{
			Session: session, Channel: channel, Shard: shard, Hot: hot, DoorbellArmed: !hot,
			H2DSize: 1 << 20, H2DUsed: 4_096, H2DConsumed: 21_000_000, D2HSize: 1 << 20, D2HUsed: 524_288, D2HProduced: 3_145_728,
			Waiting: shard, RecordsH2D: 80_000, RecordsD2H: 40_000, Interrupts: 900, Moderated: 4_000,
		}
	}
	return []dpureport.Ring{ring(9, 1, 0, true), ring(7, 0, 0, true), ring(7, 0, 1, false), ring(9, 0, 1, false)}
}

// policyFile says what Host.Report shows.
const policyFile = `no_dpu: kernel
default: offload
rules:
  - process: nginx
    listen: 198.18.0.0/15:80-443
    action: offload
  - action: kernel
`

// Policy is what Report shows.
func (Host) Policy() *policy.Policy {
	p, err := policy.Parse("/etc/pno/policy.yaml", []byte(policyFile))
	if err != nil {
		panic(err) // a mistake in this file
	}
	return p
}

// Host is a hostd with the same two processes.
type Host struct{}

// Report is the snapshot.
func (Host) Report() hostreport.Host {
	session := func(id uint64, pid int, name string, offloaded, kernel, tx, rx uint64) hostreport.Session {
		return hostreport.Session{
			ID: id, PID: pid, UID: 33, Name: name, State: "up", Attached: Start.Add(time.Duration(pid) * time.Second),
			Policy: "/etc/pno/policy.yaml", Channels: 1, Memory: offload.DefaultLayout(2).TotalSize(), Registered: 1,
			Sockets: 3, Offloaded: offloaded, KernelTotal: kernel, BytesTx: tx, BytesRx: rx,
		}
	}
	return hostreport.Host{
		Version: Version, Protocol: "1.0", PID: 400, Started: Start, Taken: Now,
		DPU: hostreport.DPULink{State: "up", Address: "/run/pno/dpud.sock", Shards: 2, Since: Start, Losses: 1, Protocol: "1.0", Generation: 2},
		Policy: hostreport.Policy{
			Source: "/etc/pno/policy.yaml", Loaded: Start, NoDPU: "kernel", Default: "offload",
			Rules: []hostreport.Rule{
				{Line: 4, Process: "nginx", Op: "listen", Address: "198.18.0.0/15", Ports: "80-443", Proto: "tcp", Action: "offload"},
				{Line: 7, Op: "any", Address: "any", Ports: "any", Proto: "tcp", Action: "kernel"},
			},
		},
		Sessions: []hostreport.Session{
			session(7, 4711, "nginx", 12_001, 3, 20_000_000_000, 600_000),
			session(9, 815, "haproxy", 341, 2, 1_474_836_480, 448_576),
		},
		Bypassing: []hostreport.Bypass{{PID: 4242, Name: "busybox", Reason: "static", Advice: "use a dynamically linked build", Sockets: 2}},
		Agent: hostreport.Agent{
			AttachesTotal: 5, AttachesRefused: map[string]uint64{"wrong protocol version": 1},
			SessionsEnded: map[string]uint64{"process exited": 3}, Bypassing: map[string]uint64{"static": 1}, ChannelsOpened: 7, Forks: 2, ForksAdopted: 1, ForksDropped: 1,
			SocketsMoved: 1, SocketsHeld: 2, PolicyReloads: 1,
		},
		SocketsOffloaded: 12_342, SocketsKernel: map[string]uint64{"policy": 3, "udp": 2},
		BytesTx: 21_474_836_480, BytesRx: 1_048_576,
		Counters: []hostreport.Counter{
			{Name: "sockets_offloaded", Help: "Sockets that went through the offload.", Value: 12_342},
			{Name: "doorbells", Help: "Doorbells rung.", Value: 1_600},
			{Name: "sleeps", Help: "Times a thread went to sleep.", Value: 2_100},
			{Name: "wakeups", Help: "Of these, ended by an interrupt.", Value: 1_750},
			{Name: "spins_hit", Help: "Polls that found work.", Value: 64_000},
		},
	}
}

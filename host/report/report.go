// SPDX-License-Identifier: Apache-2.0

// Package report holds what hostd can tell about itself, as plain values with
// stable snake_case JSON names. The host server fills a Host in; the admin
// API, `pno sim --stats` and the Prometheus collector read it.
//
// A Host is a snapshot: it shares nothing with the server, and belongs to
// whoever asked for it.
package report

import "time"

// Host is one snapshot of a host agent.
type Host struct {
	Version  string    `json:"version"`  // of the program
	Protocol string    `json:"protocol"` // of the channel, "major.minor"
	PID      int       `json:"pid"`
	Started  time.Time `json:"started"`
	Taken    time.Time `json:"taken"`

	DPU      DPULink   `json:"dpu"`
	Policy   Policy    `json:"policy"`
	Sessions []Session `json:"sessions"` // live ones, by id
	Agent    Agent     `json:"agent"`

	// Living processes that were to be offloaded and are not, as far as found.
	Bypassing []Bypass `json:"bypassing,omitempty"`

	// Totals over live and ended sessions.
	SocketsOffloaded uint64            `json:"sockets_offloaded"`
	SocketsKernel    map[string]uint64 `json:"sockets_kernel"` // by reason
	BytesTx          uint64            `json:"bytes_tx"`
	BytesRx          uint64            `json:"bytes_rx"`
	Counters         []Counter         `json:"counters"` // every shim counter, in stats.def order
}

// DPULink is the state of the control link to dpud.
type DPULink struct {
	State      string    `json:"state"` // "up", "down", "refused"
	Address    string    `json:"address"`
	Shards     int       `json:"shards"`
	Since      time.Time `json:"since"` // of the present state
	Losses     uint64    `json:"losses"`
	LastError  string    `json:"last_error,omitempty"`
	Protocol   string    `json:"protocol,omitempty"`
	Generation uint64    `json:"generation"` // counts links that came up
}

// Policy is the policy in force for new processes.
type Policy struct {
	Source          string    `json:"source"` // file name, or "default"
	Loaded          time.Time `json:"loaded"`
	NoDPU           string    `json:"no_dpu"` // "kernel" or "refuse"
	OffloadLoopback bool      `json:"offload_loopback"`
	Default         string    `json:"default"` // action when no rule matches
	Rules           []Rule    `json:"rules"`
}

// Rule is one line of a policy, as text.
type Rule struct {
	Line    int    `json:"line"`
	Process string `json:"process,omitempty"`
	Proto   string `json:"proto"`
	Op      string `json:"op"` // "listen", "connect" or "any"
	Address string `json:"address,omitempty"`
	Ports   string `json:"ports,omitempty"`
	Action  string `json:"action"`
}

// Session is one attached process.
type Session struct {
	ID       uint64    `json:"id"`
	PID      int       `json:"pid"`
	UID      int       `json:"uid"`
	Name     string    `json:"name"`
	State    string    `json:"state"` // "up", "dpu_lost", "exec" (waits for the new image)
	Attached time.Time `json:"attached"`
	Policy   string    `json:"policy"` // source of the rules that it was given

	Channels    int       `json:"channels"`
	Memory      uint64    `json:"memory"`     // bytes of session memory
	Registered  int       `json:"registered"` // sockets known by cookie
	Sockets     uint64    `json:"sockets"`    // open now
	Offloaded   uint64    `json:"sockets_offloaded"`
	KernelTotal uint64    `json:"sockets_kernel"`
	BytesTx     uint64    `json:"bytes_tx"`
	BytesRx     uint64    `json:"bytes_rx"`
	Counters    []Counter `json:"counters"`
}

// Counter is one named counter of the shim.
type Counter struct {
	Name  string `json:"name"`
	Help  string `json:"help,omitempty"`
	Value uint64 `json:"value"`
}

// Agent counts what hostd itself did.
type Agent struct {
	AttachesTotal   uint64            `json:"attaches_total"`
	AttachesRefused map[string]uint64 `json:"attaches_refused"` // by reason
	SessionsEnded   map[string]uint64 `json:"sessions_ended"`   // by reason
	ProtocolErrors  uint64            `json:"protocol_errors"`
	ChannelsOpened  uint64            `json:"channels_opened"`
	Forks           uint64            `json:"forks"`
	ForksAdopted    uint64            `json:"forks_adopted"`
	ForksDropped    uint64            `json:"forks_dropped"`
	SocketsMoved    uint64            `json:"sockets_moved"` // between processes, by exec or SCM_RIGHTS
	SocketsHeld     int               `json:"sockets_held"`  // registered now
	Readopted       uint64            `json:"readopted"`     // sessions taken over after a restart
	PolicyReloads   uint64            `json:"policy_reloads"`
	PolicyErrors    uint64            `json:"policy_errors"`
	Bypassing       map[string]uint64 `json:"bypassing"` // processes so far, by reason
}

// Bypass is a process that passes the offload by.
type Bypass struct {
	PID     int       `json:"pid"`
	Name    string    `json:"name"` // of its program
	Reason  string    `json:"reason"`
	Advice  string    `json:"advice"`
	Sockets int       `json:"sockets"` // of the kernel, that the policy would offload
	Since   time.Time `json:"since"`   // found
}

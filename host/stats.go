// SPDX-License-Identifier: Apache-2.0

package host

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"os"
	"slices"
	"strings"
	"time"

	"pno/host/policy"
	"pno/host/report"
	"pno/internal/buildinfo"
	"pno/offload"
)

//go:generate go run ./genstats

// totals is what ended sessions leave behind, and what hostd counts itself.
// Guarded by Server.mu.
type totals struct {
	counters []uint64 // of ended sessions, in stats.def order

	attaches, channels, forks, forksAdopted, forksDropped uint64
	moved, readopted, protocolErrors                      uint64
	policyReloads, policyErrors                           uint64

	refused map[string]uint64 // attaches, by reason
	ended   map[string]uint64 // sessions, by reason
}

func newTotals() totals {
	return totals{counters: make([]uint64, len(shimCounters)), refused: make(map[string]uint64), ended: make(map[string]uint64)}
}

// fold adds the counters of a session that ends.
func (t *totals) fold(x *session) {
	if x.mem == nil {
		return
	}
	for i, v := range x.mem.counters(len(shimCounters)) {
		t.counters[i] = saturate(t.counters[i], v)
	}
}

// saturate adds without wrapping: a process may write any number.
func saturate(a, b uint64) uint64 {
	if a > math.MaxUint64-b {
		return math.MaxUint64
	}
	return a + b
}

// counterIndex finds a counter by name; names are fixed by stats.def.
var counterIndex = func() map[string]int {
	m := make(map[string]int, len(shimCounters))
	for i, c := range shimCounters {
		m[c.name] = i
	}
	return m
}()

const kernelPrefix = "sockets_kernel_"

type counterDef struct{ name, help string }

func named(values []uint64) []report.Counter {
	out := make([]report.Counter, len(shimCounters))
	for i, c := range shimCounters {
		out[i] = report.Counter{Name: c.name, Help: c.help, Value: values[i]}
	}
	return out
}

func kernelTotal(values []uint64) (sum uint64) {
	for i, c := range shimCounters {
		if strings.HasPrefix(c.name, kernelPrefix) {
			sum = saturate(sum, values[i])
		}
	}
	return sum
}

// Report is a snapshot of everything.
func (s *Server) Report() report.Host {
	link := s.link.Status()
	s.mu.Lock()
	defer s.mu.Unlock()
	r := report.Host{
		Version: buildinfo.Version(), Protocol: fmt.Sprintf("%d.%d", offload.VersionMajor, offload.VersionMinor),
		PID: os.Getpid(), Started: s.began, Taken: time.Now(),
		DPU: report.DPULink{
			State: string(link.State), Address: s.cfg.DPU, Shards: link.Shards, Since: link.Since,
			Losses: link.Losses, LastError: link.LastError, Generation: link.Generation,
		},
		Policy: policyReport(s.policy, s.loaded), Sessions: []report.Session{},
		SocketsKernel: make(map[string]uint64),
		Agent: report.Agent{
			AttachesTotal: s.stats.attaches, AttachesRefused: maps.Clone(s.stats.refused), SessionsEnded: maps.Clone(s.stats.ended),
			ProtocolErrors: s.stats.protocolErrors, ChannelsOpened: s.stats.channels,
			Forks: s.stats.forks, ForksAdopted: s.stats.forksAdopted, ForksDropped: s.stats.forksDropped,
			SocketsMoved: s.stats.moved, SocketsHeld: len(s.holders), Readopted: s.stats.readopted,
			PolicyReloads: s.stats.policyReloads, PolicyErrors: s.stats.policyErrors,
		},
	}
	if link.Version != 0 {
		r.DPU.Protocol = fmt.Sprintf("%d.%d", link.Version>>16, link.Version&0xffff)
	}
	total := slices.Clone(s.stats.counters)
	for _, x := range s.sessions {
		values := x.mem.counters(len(shimCounters))
		for i, v := range values {
			total[i] = saturate(total[i], v)
		}
		r.Sessions = append(r.Sessions, x.report(values))
	}
	slices.SortFunc(r.Sessions, func(a, b report.Session) int {
		return cmp.Or(cmp.Compare(a.PID, b.PID), cmp.Compare(a.ID, b.ID))
	})
	r.Counters = named(total)
	r.SocketsOffloaded = total[counterIndex["sockets_offloaded"]]
	r.BytesTx, r.BytesRx = total[counterIndex["bytes_tx"]], total[counterIndex["bytes_rx"]]
	for i, c := range shimCounters {
		if reason, ok := strings.CutPrefix(c.name, kernelPrefix); ok {
			r.SocketsKernel[reason] = total[i]
		}
	}
	if s.bypass.sockets > 0 {
		r.SocketsKernel[bypassSockets] = s.bypass.sockets
	}
	r.Bypassing, r.Agent.Bypassing = s.bypass.report(), maps.Clone(s.bypass.counts)
	return r
}

func (x *session) report(values []uint64) report.Session {
	at := func(name string) uint64 { return values[counterIndex[name]] }
	r := report.Session{
		ID: x.id, PID: x.peer.PID, UID: x.peer.UID, Name: x.name, State: "up", Attached: x.attached, Policy: x.policyFrom,
		Channels: x.channels(), Memory: x.mem.size, Registered: len(x.sockets),
		Offloaded: at("sockets_offloaded"), KernelTotal: kernelTotal(values),
		BytesTx: at("bytes_tx"), BytesRx: at("bytes_rx"), Counters: named(values),
	}
	if open, closed := at("sockets_offloaded"), at("sockets_closed"); open > closed {
		r.Sockets = open - closed
	}
	switch {
	case x.lost:
		r.State = "dpu_lost"
	case x.kept != nil:
		r.State = "exec"
	}
	return r
}

func policyReport(p *policy.Policy, loaded time.Time) report.Policy {
	out := report.Policy{Source: p.Source(), Loaded: loaded, NoDPU: p.NoDPU.String(), OffloadLoopback: p.OffloadLoopback,
		Default: p.Default.String(), Rules: []report.Rule{}}
	for _, r := range p.Rules {
		rule := report.Rule{Line: r.Line, Process: string(r.Process), Proto: r.Proto.String(), Action: r.Action.String()}
		op, t := r.Target()
		rule.Op, rule.Address, rule.Ports = op.String(), t.AddressText(), t.PortsText()
		out.Rules = append(out.Rules, rule)
	}
	return out
}

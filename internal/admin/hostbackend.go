// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"fmt"

	hostreport "pno/host/report"
	adminv1 "pno/proto/pno/admin/v1"
)

// hostBackend turns what hostd reports into messages.
type hostBackend struct{ host Host }

// linkUp is hostreport.DPULink.State of a link that works.
const linkUp = "up"

func (b hostBackend) serving() bool { return b.host.Report().DPU.State == linkUp }

func (b hostBackend) status() *adminv1.Status { return hostStatus(b.host.Report()) }

func (b hostBackend) stats() *adminv1.Stats { return hostStats(b.host.Report()) }

func hostStatus(r hostreport.Host) *adminv1.Status {
	s := &adminv1.Status{
		Role:          adminv1.Role_ROLE_HOST,
		Version:       r.Version,
		Protocol:      r.Protocol,
		StartTime:     timestamp(r.Started),
		PeerConnected: r.DPU.State == linkUp,
		Peer:          text(r.DPU.Address),
		Sessions:      uint64(len(r.Sessions)),
		Shards:        uint32(r.DPU.Shards),
	}
	if !s.PeerConnected {
		problem := "the link to the DPU is " + r.DPU.State
		if r.DPU.LastError != "" {
			problem += ": " + text(r.DPU.LastError)
		}
		s.Problems = append(s.Problems, problem)
	}
	for _, b := range r.Bypassing {
		s.Notices = append(s.Notices, bypassNotice(b))
	}
	return s
}

func bypassNotice(b hostreport.Bypass) string {
	what := "is not offloaded"
	if b.Sockets > 0 {
		what = fmt.Sprintf("has %d kernel sockets that the policy would offload", b.Sockets)
	}
	return fmt.Sprintf("process %s (pid %d) %s (%s): %s", text(b.Name), b.PID, what, b.Reason, b.Advice)
}

func hostStats(r hostreport.Host) *adminv1.Stats {
	return &adminv1.Stats{
		Time:      timestamp(r.Taken),
		StartTime: timestamp(r.Started),
		Host: &adminv1.HostStats{
			Sessions: &adminv1.HostSessionStats{
				Active:    uint64(len(r.Sessions)),
				Attached:  r.Agent.AttachesTotal,
				Refused:   reasons(r.Agent.AttachesRefused),
				Ended:     reasons(r.Agent.SessionsEnded),
				Bypassing: reasons(r.Agent.Bypassing),
			},
			Sockets: &adminv1.HostSocketStats{
				Offloaded: r.SocketsOffloaded,
				Kernel:    reasons(r.SocketsKernel),
				Held:      count(r.Agent.SocketsHeld),
				Moved:     r.Agent.SocketsMoved,
			},
			BytesTx: r.BytesTx,
			BytesRx: r.BytesRx,
			Shim:    hostCounters(r.Counters),
			Agent: &adminv1.AgentStats{
				ProtocolErrors: r.Agent.ProtocolErrors,
				ChannelsOpened: r.Agent.ChannelsOpened,
				Forks:          r.Agent.Forks,
				ForksAdopted:   r.Agent.ForksAdopted,
				ForksDropped:   r.Agent.ForksDropped,
				Readopted:      r.Agent.Readopted,
				PolicyReloads:  r.Agent.PolicyReloads,
				PolicyErrors:   r.Agent.PolicyErrors,
			},
			Process: processStats(),
			DpuLink: &adminv1.DpuLinkStats{
				Up:         r.DPU.State == linkUp,
				Generation: r.DPU.Generation,
				Losses:     r.DPU.Losses,
			},
		},
	}
}

func hostCounters(in []hostreport.Counter) []*adminv1.Counter {
	out := make([]*adminv1.Counter, len(in))
	for i, c := range in {
		out[i] = &adminv1.Counter{Name: c.Name, Help: c.Help, Value: c.Value}
	}
	return out
}

var sessionStates = map[string]adminv1.SessionState{
	"up":       adminv1.SessionState_SESSION_STATE_UP,
	"dpu_lost": adminv1.SessionState_SESSION_STATE_DPU_LOST,
	"exec":     adminv1.SessionState_SESSION_STATE_EXEC,
}

func (b hostBackend) sessions() []*adminv1.Session {
	in := b.host.Report().Sessions
	out := make([]*adminv1.Session, len(in))
	for i, s := range in {
		out[i] = &adminv1.Session{
			Name:             sessionName(s.ID),
			Session:          s.ID,
			Pid:              int64(s.PID),
			Process:          text(s.Name),
			State:            sessionStates[s.State],
			AttachTime:       timestamp(s.Attached),
			Channels:         uint32(s.Channels),
			Sockets:          s.Sockets,
			BytesTx:          s.BytesTx,
			BytesRx:          s.BytesRx,
			MemoryBytes:      s.Memory,
			SocketsOffloaded: s.Offloaded,
			SocketsKernel:    s.KernelTotal,
			Uid:              uint32(s.UID),
			Policy:           text(s.Policy),
		}
	}
	return out
}

func (b hostBackend) policy() *adminv1.Policy {
	p := b.host.Report().Policy
	m := &adminv1.Policy{
		Name:            policyName,
		Source:          text(p.Source),
		LoadTime:        timestamp(p.Loaded),
		NoDpu:           p.NoDPU,
		OffloadLoopback: p.OffloadLoopback,
		DefaultAction:   p.Default,
	}
	for _, r := range p.Rules {
		m.Rules = append(m.Rules, &adminv1.PolicyRule{
			Line: uint32(r.Line), Process: text(r.Process), Operation: r.Op,
			Address: text(r.Address), Ports: text(r.Ports), Action: r.Action, Protocol: r.Proto,
		})
	}
	return m
}

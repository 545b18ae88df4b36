// SPDX-License-Identifier: Apache-2.0

package topology

import (
	"time"

	"pno/dpu/link"
	dpureport "pno/dpu/report"
	hostreport "pno/host/report"
	"pno/sim/edge"
)

// Report is what a simulation did, in the JSON of `pno sim --stats`. The first
// four fields are the shim's own counts, summed over all processes.
type Report struct {
	SocketsOffloaded uint64            `json:"sockets_offloaded"`
	SocketsKernel    map[string]uint64 `json:"sockets_kernel"` // by reason
	BytesTx          uint64            `json:"bytes_tx"`
	BytesRx          uint64            `json:"bytes_rx"`

	PCIe string          `json:"pcie"`
	Edge Edge            `json:"edge"`
	Wire Wire            `json:"wire"`
	Host hostreport.Host `json:"host"`
	DPU  dpureport.Stats `json:"dpu"`
}

// Edge is the far end's share. Up is from this machine to the wire.
type Edge struct {
	Published uint64 `json:"published"`
	Forwarded uint64 `json:"forwarded"`
	Failed    uint64 `json:"failed"`
	Active    int64  `json:"active"`
	BytesUp   uint64 `json:"bytes_up"`
	BytesDown uint64 `json:"bytes_down"`
}

// Wire is what was sent by each end of the wire.
type Wire struct {
	ToDPU  Way `json:"to_dpu"`
	ToEdge Way `json:"to_edge"`
}

// Way is one direction of the wire.
type Way struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
	Lost    uint64 `json:"lost"` // to --loss, or because the receiver held too many
}

// Report returns the numbers so far, or the last ones after Stop.
func (s *Sim) Report() Report {
	if s.final != nil {
		return *s.final
	}
	h, d := s.host.Report(), s.dpu.Stats()
	e := s.edge.Stats()
	near, far := s.dpuEnd.Stats(), s.edgeEnd.Stats()
	return Report{
		SocketsOffloaded: h.SocketsOffloaded, SocketsKernel: h.SocketsKernel, BytesTx: h.BytesTx, BytesRx: h.BytesRx,
		PCIe: s.cfg.PCIe.Name,
		Edge: edgeReport(e),
		Wire: Wire{ToDPU: way(far, near), ToEdge: way(near, far)},
		Host: h, DPU: d,
	}
}

func edgeReport(e edge.Stats) Edge {
	return Edge{
		Published: e.Published, Forwarded: e.Forwarded, Failed: e.Failed,
		Active: e.Active, BytesUp: e.BytesUp, BytesDown: e.BytesDown,
	}
}

func way(from, to link.Stats) Way {
	return Way{Packets: from.TxPackets, Bytes: from.TxBytes, Lost: from.TxDropped + to.RxDropped}
}

// Settle waits until no process is attached any more, to neither side, at most
// for d, so that the numbers of those that have just ended are in the report.
func (s *Sim) Settle(d time.Duration) {
	attached := func() bool { return len(s.host.Report().Sessions) > 0 || s.dpu.Stats().Sessions.Open > 0 }
	for end := time.Now().Add(d); attached() && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
	}
}

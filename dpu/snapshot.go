// SPDX-License-Identifier: Apache-2.0

package dpu

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"runtime"
	"slices"
	"time"

	"pno/dpu/report"
	"pno/dpu/shard"
)

// askTimeout bounds how long a report waits for a shard's loop.
const askTimeout = 500 * time.Millisecond

// collect gathers what f returns for each shard that answers.
func collect[T any](d *DPU, f func(*shard.Shard) T) []T {
	ctx, cancel := context.WithTimeout(context.Background(), askTimeout)
	defer cancel()
	var all []T
	for _, s := range d.shards {
		one := make(chan T, 1)
		if s.Do(ctx, func() { one <- f(s) }) {
			all = append(all, <-one)
		}
	}
	return all
}

// Stats reports the DPU in numbers.
func (d *DPU) Stats() report.Stats {
	type part struct {
		shard   report.Shard
		sockets report.SocketTotals
		grants  int
	}
	r := report.Stats{
		Time: time.Now(), StartedAt: d.started, UptimeSeconds: time.Since(d.started).Seconds(),
		Version: d.c.Version, Links: d.links(), Sessions: d.sessionTotals(),
	}
	for _, p := range collect(d, func(s *shard.Shard) (p part) {
		p.shard = s.Report()
		s.Table.Fill(&p.shard, &p.sockets)
		p.grants = s.Table.Grants()
		return p
	}) {
		r.Shards = append(r.Shards, p.shard)
		r.Traffic.Add(p.shard.Traffic)
		r.Sockets.Add(p.sockets)
		r.Sessions.ForkWaits = max(r.Sessions.ForkWaits, p.grants)
	}
	for _, s := range d.shards {
		r.Netstack = s.Stack.Counters(r.Netstack)
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	r.Memory = report.Memory{
		Heap: m.HeapAlloc, Sys: m.Sys, Goroutines: runtime.NumGoroutine(), GCs: uint64(m.NumGC),
	}
	return r
}

func (d *DPU) sessionTotals() report.SessionTotals {
	d.mu.Lock()
	defer d.mu.Unlock()
	t := &d.totals
	r := report.SessionTotals{
		Open: len(d.sessions), Opened: t.opened, Closed: t.closed, Refused: t.refused, Violators: t.violators,
		ByReason: make(map[string]uint64, len(t.reasons)),
	}
	for k, v := range t.reasons {
		r.ByReason[k] = v
	}
	return r
}

func (d *DPU) links() (list []report.Link) {
	for _, n := range d.c.Interfaces {
		s, mac := n.Device.Stats(), n.Device.MAC()
		list = append(list, report.Link{
			Name: n.Device.Name(), Driver: n.Driver, Mode: n.Mode, MAC: net.HardwareAddr(mac[:]).String(),
			MTU: n.Device.MTU(), Queues: len(n.Device.Queues()),
			RxPackets: s.RxPackets, RxBytes: s.RxBytes, TxPackets: s.TxPackets, TxBytes: s.TxBytes,
			RxDropped: s.RxDropped, TxDropped: s.TxDropped, Kicks: s.Kicks,
		})
	}
	return list
}

// Sockets reports every socket of every session.
func (d *DPU) Sockets() []report.Socket {
	list := slices.Concat(collect(d, func(s *shard.Shard) []report.Socket { return s.Table.Sockets() })...)
	slices.SortFunc(list, func(a, b report.Socket) int {
		return cmp.Or(cmp.Compare(a.Session, b.Session), cmp.Compare(a.Shard, b.Shard), cmp.Compare(a.Handle, b.Handle))
	})
	return list
}

// Rings reports every queue pair.
func (d *DPU) Rings() []report.Ring {
	list := slices.Concat(collect(d, func(s *shard.Shard) []report.Ring { return s.Table.Rings() })...)
	slices.SortFunc(list, func(a, b report.Ring) int {
		return cmp.Or(cmp.Compare(a.Session, b.Session), cmp.Compare(a.Channel, b.Channel), cmp.Compare(a.Shard, b.Shard))
	})
	return list
}

// Sessions reports every session.
func (d *DPU) Sessions() []report.Session {
	d.mu.Lock()
	list := make([]report.Session, 0, len(d.sessions))
	for id, p := range d.sessions {
		list = append(list, report.Session{
			ID: id, PID: p.proc.PID, Process: p.proc.Name, OpenedAt: p.opened, Shards: p.layout.Shards,
			H2DSize: p.layout.H2DSize, D2HSize: p.layout.D2HSize,
			RxWindow: p.layout.RxWindow, TxWindow: p.layout.TxWindow,
		})
	}
	d.mu.Unlock()
	slices.SortFunc(list, func(a, b report.Session) int { return cmp.Compare(a.ID, b.ID) })
	parts := collect(d, func(s *shard.Shard) []report.Session {
		part := make([]report.Session, len(list))
		for i := range part {
			part[i].ID = list[i].ID
			s.Table.FillSession(&part[i])
		}
		return part
	})
	for _, part := range parts {
		for i := range list {
			list[i].Merge(part[i])
		}
	}
	return list
}

// Health asks each loop for a sign of life.
func (d *DPU) Health() report.Health {
	r := report.Health{Serving: true}
	d.mu.Lock()
	r.Control = d.agent
	if d.closed {
		r.Serving = false
		r.Reasons = append(r.Reasons, "shut down")
	}
	d.mu.Unlock()
	for _, s := range d.shards {
		ctx, cancel := context.WithTimeout(context.Background(), askTimeout)
		begin := time.Now()
		alive := s.Do(ctx, func() {})
		cancel()
		r.Shards = append(r.Shards, report.ShardHealth{
			Index: s.Index, Alive: alive, ReplyMS: float64(time.Since(begin).Microseconds()) / 1000,
		})
		if !alive {
			r.Serving = false
			r.Reasons = append(r.Reasons, fmt.Sprintf("shard %d does not answer", s.Index))
		}
	}
	return r
}

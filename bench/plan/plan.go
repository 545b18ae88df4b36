// SPDX-License-Identifier: Apache-2.0

// Package plan predicts what a host with a DPU can serve: which resource is
// used up first, and at what rate, for a mix of payloads.
//
// Everything is linear: a request costs each resource something fixed and
// something for each byte, a connection something once. So the costs of a mix
// are the mean of its parts' costs, and a resource is used up at its capacity
// divided by what a request takes of it. Queues, and with them latency, are not
// modelled: near the rate that is printed, waiting has no bound.
//
// All functions are pure. Where the numbers come from stands next to each of
// them and is printed with the result.
package plan

import (
	"errors"
	"fmt"
	"slices"

	"pno/offload"
)

// Work is what is asked of the host.
type Work struct {
	Mix     Mix     `json:"mix"`               // response bodies
	Head    int     `json:"head_bytes"`        // in front of each body
	Request int     `json:"request_bytes"`     // each request's
	PerConn float64 `json:"requests_per_conn"` // requests on one connection; 0: as many as you like
}

// Host is the machine that the card is in.
type Host struct {
	Cores int     `json:"cores"` // that the proxy may use
	Speed float64 `json:"speed"` // of one of them, to the measured one
}

// Resource is one thing that requests use up.
type Resource struct {
	Name       string  `json:"name"`
	Unit       string  `json:"unit"`     // of a second's capacity
	Capacity   float64 `json:"capacity"` // a second
	PerRequest float64 `json:"per_request"`
	Rate       float64 `json:"requests_per_second"` // at which it is used up
	Used       float64 `json:"used"`                // share of it at the plan's rate
}

// Plan is a prediction.
type Plan struct {
	Card      string     `json:"card"`
	Work      Work       `json:"work"`
	Host      Host       `json:"host"`
	First     string     `json:"first"` // the resource that is used up first
	Rate      float64    `json:"requests_per_second"`
	Gbits     float64    `json:"gbit_s"`    // of bodies
	Resources []Resource `json:"resources"` // the scarcest first
	Constants []Constant `json:"constants"`
}

// Constant is a number that the prediction rests on.
type Constant struct {
	Name   string  `json:"name"`
	Value  float64 `json:"value"`
	Unit   string  `json:"unit"`
	Source string  `json:"source"`
}

// Make predicts what card and host can do with costs as measured.
func Make(card Card, host Host, costs Costs, work Work) (*Plan, error) {
	if err := errors.Join(card.check(), host.check(), costs.check(), work.check()); err != nil {
		return nil, err
	}
	p := &Plan{Card: card.Name, Work: work, Host: host, Resources: resources(card, host, costs, work),
		Constants: append(card.constants(), costs.constants()...)}
	slices.SortStableFunc(p.Resources, func(a, b Resource) int {
		switch {
		case a.Rate < b.Rate:
			return -1
		case a.Rate > b.Rate:
			return 1
		}
		return 0
	})
	p.First, p.Rate = p.Resources[0].Name, p.Resources[0].Rate
	for i := range p.Resources {
		p.Resources[i].Used = p.Rate / p.Resources[i].Rate
	}
	p.Gbits = p.Rate * work.Mix.Mean(func(n int) float64 { return float64(n) }) * 8 / 1e9
	return p, nil
}

func (h Host) check() error {
	if h.Cores < 1 || h.Speed <= 0 {
		return errors.New("the host needs a core, and a speed above 0")
	}
	return nil
}

func (w Work) check() error {
	if len(w.Mix) == 0 {
		return errors.New("the mix is empty")
	}
	if w.Head < 0 || w.Request < 1 || w.PerConn < 0 {
		return errors.New("a request has a byte at least, and no other number may be negative")
	}
	return nil
}

// resources lists what a request uses, and how much there is of it.
func resources(card Card, host Host, costs Costs, w Work) []Resource {
	conns := 0.0 // opened for a request
	if w.PerConn > 0 {
		conns = 1 / w.PerConn
	}
	size := w.Mix.Mean(func(n int) float64 { return float64(n) })
	mean := func(f func(body int) float64) float64 { return w.Mix.Mean(f) }
	all := []Resource{
		{Name: "host cores", Unit: "µs of CPU time", Capacity: 1e6 * float64(host.Cores) * host.Speed,
			PerRequest: costs.Host.of(size, conns)},
		{Name: "DPU cores", Unit: "µs of CPU time", Capacity: 1e6 * float64(card.shards()) * card.Speed,
			PerRequest: costs.DPU.of(size, conns)},
		{Name: "PCIe, host to DPU", Unit: "bytes", Capacity: float64(card.PCIe.ReadBandwidth),
			PerRequest: mean(func(n int) float64 { return recordBytes(w.Head+n) + hostLine })},
		{Name: "PCIe, DPU to host", Unit: "bytes", Capacity: float64(card.PCIe.WriteBandwidth),
			PerRequest: mean(func(n int) float64 {
				return recordBytes(w.Request) + credits(w.Head+n)*offload.RecordHdr + devLine
			})},
		{Name: "DMA operations", Unit: "operations", Capacity: card.operations(), PerRequest: opsPerRequest},
		{Name: "wire, out", Unit: "bits", Capacity: card.Port,
			PerRequest: mean(func(n int) float64 { return 8 * (frames(w.Head+n) + acks(w.Request)) })},
		{Name: "wire, in", Unit: "bits", Capacity: card.Port,
			PerRequest: mean(func(n int) float64 { return 8 * (frames(w.Request) + acks(w.Head+n)) })},
	}
	for i := range all {
		all[i].Rate = all[i].Capacity / all[i].PerRequest
	}
	// A profile that costs nothing has no limits.
	return slices.DeleteFunc(all, func(r Resource) bool { return r.Capacity == 0 })
}

// Nothing is taken to be batched, as at a low rate: a control line and the
// records it announces are read, a record and a control line written.
const (
	opsPerRequest = 4
	hostLine      = 32 // bytes of a control line that are read, and written
	devLine       = 24
)

// recordBytes is what n bytes of a stream take on a ring.
func recordBytes(n int) float64 {
	padded := func(n int) int {
		return (offload.RecordHdr + n + offload.RecordAlign - 1) / offload.RecordAlign * offload.RecordAlign
	}
	full, rest := n/offload.MaxPayload, n%offload.MaxPayload
	sum := full * padded(offload.MaxPayload)
	if rest > 0 {
		sum += padded(rest)
	}
	return float64(sum)
}

// credits is how many records give back transmit window for n bytes.
func credits(n int) float64 {
	return float64(n / (int(offload.DefaultLayout(1).TxWindow) / 2))
}

const (
	segment = 1448    // bytes of TCP payload at an MTU of 1500 with timestamps
	around  = 52 + 38 // IPv4 and TCP with timestamps; Ethernet with preamble, checksum and gap
	bare    = 90      // a frame without payload
)

// frames is the bytes on the wire for n bytes of payload.
func frames(n int) float64 {
	segments := (n + segment - 1) / segment
	return float64(n + segments*around)
}

// acks is the bytes that acknowledge n: a frame for each second segment. What
// fits into one is acknowledged by the answer to it.
func acks(n int) float64 {
	return float64(n / (2 * segment) * bare)
}

func (c Costs) check() error {
	for _, s := range []Cost{c.Host, c.DPU} {
		if s.Request <= 0 || s.Byte < 0 || s.Conn < 0 {
			return fmt.Errorf("the costs %+v: a request costs more than nothing, bytes and connections not less", s)
		}
	}
	return nil
}

// operations is how many DMA operations the card can carry out in a second: so
// many are under way on each shard, for one session.
func (c Card) operations() float64 {
	if c.PCIe.Outstanding == 0 || c.PCIe.ReadLatency == 0 {
		return 0
	}
	return float64(c.shards()) * float64(c.PCIe.Outstanding) / c.PCIe.ReadLatency.Seconds()
}

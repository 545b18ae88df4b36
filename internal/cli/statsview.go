// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"pno/internal/terminal"
	adminv1 "pno/proto/pno/admin/v1"
)

// statsTree puts in front what most readers look for, from the host's side if
// it answered.
func statsTree(s sample) object {
	host, dpu := s.both.GetHost(), s.both.GetDpu()
	o := object{{"time", s.both.GetTime().AsTime().Format(time.RFC3339Nano)}}
	if s.over > 0 {
		o = append(o, member{"interval_seconds", s.over.Seconds()})
	}
	if host != nil {
		kernel := object{}
		for _, reason := range slices.Sorted(maps.Keys(host.GetSockets().GetKernel())) {
			kernel = append(kernel, member{reason, host.GetSockets().GetKernel()[reason]})
		}
		o = append(o, member{"sockets_offloaded", host.GetSockets().GetOffloaded()}, member{"sockets_kernel", kernel},
			member{"bytes_tx", host.GetBytesTx()}, member{"bytes_rx", host.GetBytesRx()})
	} else {
		o = append(o, member{"bytes_tx", dpu.GetBytesTx()}, member{"bytes_rx", dpu.GetBytesRx()})
	}
	if dpu != nil {
		o = append(o, member{"dpu", treeOf(dpu.ProtoReflect())})
	}
	if host != nil {
		o = append(o, member{"host", treeOf(host.ProtoReflect())})
	}
	return o
}

// view collects the lines of the stats table: a section, what is counted, how
// much, and details.
type view struct {
	rows    [][]string
	section string
}

func (v *view) begin(section string) { v.section = section }

func (v *view) row(label, value string, notes ...string) {
	notes = slices.DeleteFunc(notes, func(n string) bool { return n == "" })
	v.rows = append(v.rows, []string{v.section, label, value, strings.Join(notes, ", ")})
	v.section = ""
}

func (a *App) writeStatsTable(s sample) error {
	if s.over > 0 {
		if _, err := fmt.Fprintf(a.Stdout, "counted in %v\n", s.over.Round(10*time.Millisecond)); err != nil {
			return err
		}
	}
	var v view
	if h := s.both.GetHost(); h != nil {
		v.host(h)
	}
	if d := s.both.GetDpu(); d != nil {
		v.dpu(d)
	}
	if a.output == formatWide {
		v.counters("network stack", s.both.GetDpu().GetNetstack())
		v.counters("shims", s.both.GetHost().GetShim())
	}
	return writeColumns(a.Stdout, v.rows, []bool{false, false, true, false})
}

func (v *view) host(h *adminv1.HostStats) {
	shim := make(map[string]uint64, len(h.GetShim()))
	for _, c := range h.GetShim() {
		shim[c.GetName()] = c.GetValue()
	}
	v.begin("host")
	v.row("sockets offloaded", number(h.GetSockets().GetOffloaded()), many(h.GetSessions().GetActive(), "process")+" attached")
	v.row("sockets left to the kernel", number(sum(h.GetSockets().GetKernel())), byReason(h.GetSockets().GetKernel()))
	if n := sum(h.GetSessions().GetBypassing()); n > 0 {
		v.row("processes not offloaded", number(n), byReason(h.GetSessions().GetBypassing()))
	}
	v.row("bytes sent", bytesize(h.GetBytesTx()))
	v.row("bytes received", bytesize(h.GetBytesRx()))
	v.row("doorbells rung", number(shim["doorbells"]))
	v.row("sleeps", number(shim["sleeps"]),
		number(shim["wakeups"])+" ended by an interrupt", number(shim["spins_hit"])+" saved by spinning")
	v.row("hostd CPU", cpuTime(h.GetProcess()))
}

func (v *view) dpu(d *adminv1.DpuStats) {
	s, c, l := d.GetSockets(), d.GetChannel(), d.GetLink()
	v.begin("DPU")
	v.row("connections accepted", number(s.GetAccepted()), number(s.GetConnections())+" open", many(s.GetListeners(), "listener"))
	v.row("connections opened", number(s.GetConnected()), number(s.GetConnectFailed())+" failed")
	v.row("packets received", number(l.GetPacketsRx()), bytesize(l.GetBytesRx()), nonzero(l.GetDropsRx(), "dropped"))
	v.row("packets sent", number(l.GetPacketsTx()), bytesize(l.GetBytesTx()), nonzero(l.GetDropsTx(), "dropped"), many(l.GetKicks(), "kick"))
	v.row("records from the host", number(c.GetRecordsH2D()), nonzero(c.GetRecordsUnknown(), "for closed sockets"))
	v.row("records to the host", number(c.GetRecordsD2H()), nonzero(c.GetRingFull(), "waited for room"))
	v.row("spliced within the DPU", bytesize(c.GetBytesSpliced()))
	v.row("DMA reads", number(c.GetDmaReads()), bytesize(c.GetDmaReadBytes()))
	v.row("DMA writes", number(c.GetDmaWrites()), bytesize(c.GetDmaWriteBytes()))
	v.row("doorbells taken", number(c.GetDoorbells()))
	v.row("interrupts raised", number(c.GetInterrupts()), number(c.GetInterruptsModerated())+" put off")
	v.row("dpud CPU", cpuTime(d.GetProcess()))
}

func (v *view) counters(section string, all []*adminv1.Counter) {
	v.begin(section)
	for _, c := range all {
		v.row(terminal.Printable(c.GetName()), number(c.GetValue()))
	}
}

func cpuTime(p *adminv1.ProcessStats) string {
	return fmt.Sprintf("%.2f s", (p.GetCpuUser().AsDuration() + p.GetCpuSystem().AsDuration()).Seconds())
}

func sum(m map[string]uint64) (n uint64) {
	for _, v := range m {
		n += v
	}
	return n
}

// byReason lists the reasons that occurred, the most frequent first.
func byReason(m map[string]uint64) string {
	reasons := slices.SortedFunc(maps.Keys(m), func(a, b string) int {
		return cmp.Or(cmp.Compare(m[b], m[a]), strings.Compare(a, b))
	})
	var parts []string
	for _, r := range reasons {
		if m[r] > 0 {
			parts = append(parts, terminal.Printable(r)+" "+number(m[r]))
		}
	}
	return strings.Join(parts, ", ")
}

// many counts a noun.
func many(n uint64, noun string) string {
	switch {
	case n == 1:
		return "1 " + noun
	case strings.HasSuffix(noun, "s"):
		return number(n) + " " + noun + "es"
	}
	return number(n) + " " + noun + "s"
}

// nonzero is a note on something that should not happen, when it did.
func nonzero(n uint64, what string) string {
	if n == 0 {
		return ""
	}
	return number(n) + " " + what
}

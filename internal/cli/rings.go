// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	adminv1 "pno/proto/pno/admin/v1"
)

func (a *App) newRings() *cobra.Command {
	var (
		session uint64
		filter  string
	)
	cmd := &cobra.Command{
		Use:   "rings",
		Short: "Show how full the rings between host and DPU are",
		Long: `Show the ring pairs between host and DPU, one for each channel of a process and
each shard: how much of each ring is in use (H2D carries what the host sends,
D2H what it is given), what passed through, and how many sockets wait for room.
A pair is hot while the shard looks at it on each turn, armed while the shard
sleeps and wants a doorbell. -o wide adds the bytes produced.`,
		Args: cobra.NoArgs,
		RunE: a.run(func(ctx context.Context) error { return a.runRings(ctx, session, filter) }),
	}
	cmd.Flags().Uint64Var(&session, "session", 0, "only this session's")
	cmd.Flags().StringVar(&filter, "filter", "", "comparisons of fields (as in -o json), joined by AND")
	return cmd
}

func (a *App) runRings(ctx context.Context, session uint64, filter string) error {
	d, err := a.connect(ctx, needDPU)
	if err != nil {
		return err
	}
	defer d.close()
	rings, err := allPages(ctx, a.timeout, func(ctx context.Context, token string) ([]*adminv1.Ring, string, error) {
		page, err := d.dpu.dpud().ListRings(ctx, &adminv1.ListRingsRequest{
			Parent: socketFlags{session: session}.parent(), Filter: filter, PageToken: token, PageSize: 5000,
		})
		return page.GetRings(), page.GetNextPageToken(), err
	})
	if err != nil {
		return err
	}
	if a.structured() {
		return a.writeTree(object{{"rings", trees(rings)}})
	}
	return a.ringTable(rings).write(a.Stdout)
}

func (a *App) ringTable(rings []*adminv1.Ring) *table {
	t := &table{titles: []string{"SESSION", ">CHANNEL", ">SHARD", ">H2D USED", ">RECORDS", ">D2H USED", ">RECORDS", ">WAITING", ">INTERRUPTS", "STATE"}}
	if a.output == formatWide {
		t.titles = append(t.titles, ">PUT OFF", ">H2D BYTES", ">D2H BYTES", ">H2D SIZE", ">D2H SIZE")
	}
	for _, r := range rings {
		row := []string{
			strconv.FormatUint(r.GetSession(), 10), strconv.FormatUint(uint64(r.GetChannel()), 10), strconv.FormatUint(uint64(r.GetShard()), 10),
			level(r.GetH2D()), number(r.GetH2D().GetRecords()), level(r.GetD2H()), number(r.GetD2H().GetRecords()),
			strconv.FormatUint(uint64(r.GetWaitingSockets()), 10), number(r.GetInterrupts()), ringState(r),
		}
		if a.output == formatWide {
			row = append(row, number(r.GetInterruptsModerated()), bytesize(r.GetH2D().GetProducedBytes()), bytesize(r.GetD2H().GetProducedBytes()),
				bytesize(r.GetH2D().GetSizeBytes()), bytesize(r.GetD2H().GetSizeBytes()))
		}
		t.add(row...)
	}
	return t
}

// level is the used part of a ring, in bytes and percent.
func level(l *adminv1.RingLevel) string {
	if l.GetSizeBytes() == 0 {
		return "-"
	}
	return fmt.Sprintf("%s %3d%%", bytesize(l.GetUsedBytes()), 100*l.GetUsedBytes()/l.GetSizeBytes())
}

func ringState(r *adminv1.Ring) string {
	switch {
	case r.GetHot():
		return "hot"
	case r.GetDoorbellArmed():
		return "armed"
	}
	return "idle"
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"pno/bench/plan"
)

func newPlanCmd() *cobra.Command {
	var mix, card, output string
	var measured []string
	var dpuCores int
	var dpuSpeed float64
	host := plan.Host{Cores: 8, Speed: 1}
	work := plan.Work{Head: 250, Request: 150}
	c := &cobra.Command{
		Use:   "plan",
		Short: "Predict which resource of a host with a DPU is used up first, and at what rate",
		Long: "Predict which resource of a host with a DPU is used up first, and at what rate, from the CPU time that\n" +
			"requests cost on both sides and the limits of the card, its link and its port. Every number that the\n" +
			"prediction rests on is printed with its source; some are assumptions.",
		Example: "  pno plan --card bluefield3 --mix 64:70%,16k:25%,1m:5%\n" +
			"  pno bench nginx -o json >a.json; pno bench bulk -o json >b.json; pno plan --measured a.json,b.json",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "json" && output != "table" {
				return fmt.Errorf("unknown output format %q: use table or json", output)
			}
			k, err := plan.CardByName(card)
			if err != nil {
				return err
			}
			if work.Mix, err = plan.ParseMix(mix); err != nil {
				return fmt.Errorf("--mix: %w", err)
			}
			costs, err := readCosts(measured)
			if err != nil {
				return err
			}
			p, err := plan.Make(k.WithCores(dpuCores, dpuSpeed), host, costs, work)
			if err != nil {
				return err
			}
			return printResult(cmd.OutOrStdout(), output, p, printPlan)
		},
	}
	f := c.Flags()
	f.StringVar(&card, "card", "bluefield3", "the DPU: "+plan.CardNames())
	f.StringVar(&mix, "mix", "64", "bodies of the responses, SIZE[:WEIGHT],…")
	f.Float64Var(&work.PerConn, "per-conn", 0, "requests on one connection (0: connections last)")
	f.IntVar(&work.Head, "head", work.Head, "bytes of a response in front of its body")
	f.IntVar(&work.Request, "request", work.Request, "bytes of a request")
	f.IntVar(&host.Cores, "host-cores", host.Cores, "cores of the host that the proxy may use")
	f.Float64Var(&host.Speed, "host-speed", host.Speed, "speed of one of them, to the one that was measured")
	f.IntVar(&dpuCores, "dpu-cores", 0, "cores of the DPU (0: the card's)")
	f.Float64Var(&dpuSpeed, "dpu-speed", 0, "speed of one of them, to the one that was measured (0: the card's)")
	f.StringSliceVar(&measured, "measured", nil, "results of pno bench -o json to learn the costs from")
	f.StringVarP(&output, "output", "o", "table", "table or json")
	return c
}

// readCosts learns from results of pno bench: two sizes at least, and, for
// connections, conns. Without any, it takes the newest of this tree's.
func readCosts(paths []string) (plan.Costs, error) {
	if len(paths) == 0 {
		return plan.Measured()
	}
	var points []plan.Point
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			return plan.Costs{}, fmt.Errorf("read a measurement: %w", err)
		}
		point, err := plan.ReadPoint(b)
		if err != nil {
			return plan.Costs{}, fmt.Errorf("read the measurement %s: %w", path, err)
		}
		points = append(points, point)
	}
	costs, err := plan.Fit(points, "pno bench: "+strings.Join(paths, ", "))
	if err != nil {
		return costs, fmt.Errorf("learn costs from %s: %w", strings.Join(paths, ", "), err)
	}
	return costs, nil
}

func printPlan(w io.Writer, p *plan.Plan) error {
	fmt.Fprintf(w, "%s: %.0f requests/s, %.1f Gbit/s of bodies; then the %s are used up.\n\n", p.Card, p.Rate, p.Gbits, p.First)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "RESOURCE\tA REQUEST TAKES\tOF, A SECOND\tUSED UP AT\tUSED")
	for _, r := range p.Resources {
		fmt.Fprintf(t, "%s\t%.4g %s\t%.4g\t%.0f requests/s\t%.1f %%\n", r.Name, r.PerRequest, r.Unit, r.Capacity, r.Rate, 100*r.Used)
	}
	fmt.Fprintln(t, "\t\t\t\t\nCONSTANT\tVALUE\tSOURCE\t\t")
	for _, k := range p.Constants {
		fmt.Fprintf(t, "%s\t%.4g %s\t%s\n", k.Name, k.Value, k.Unit, k.Source)
	}
	return t.Flush()
}

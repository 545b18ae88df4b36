// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"pno/crypto/client"
	"pno/crypto/mtls"
	"pno/internal/terminal"
	cryptov1 "pno/proto/pno/crypto/v1"
)

// workerLine is a worker in the output of `cryptod workers`.
type workerLine struct {
	Cluster string       `json:"cluster"`
	Address string       `json:"address"`
	State   string       `json:"state"` // serving, draining or error
	Error   string       `json:"error,omitempty"`
	Name    string       `json:"name,omitempty"`
	Engines []engineLine `json:"engines"`
	// Operations open at once on a stream, and in one request, at most.
	MaxInflight uint32 `json:"max_inflight"`
	MaxBatch    uint32 `json:"max_batch"`
}

type engineLine struct {
	Kind      string   `json:"kind"`
	Detail    string   `json:"detail"`
	Capacity  uint32   `json:"capacity"`
	Batch     uint32   `json:"batch"`
	Simulated bool     `json:"simulated"`
	Features  []string `json:"features"`
}

func newWorkersCmd(code *int) *cobra.Command {
	var file, output string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "workers",
		Short: "Ask each worker of an agent's clusters whether it serves, and what it computes with",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "text" && output != "json" {
				return fmt.Errorf("%q is not a form of output; use text or json", output)
			}
			set, err := loadAgent(file)
			if err != nil {
				return err
			}
			*code = exitFailed
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			lines, err := surveyAll(ctx, &set)
			if err != nil {
				return err
			}
			if err := printWorkers(cmd.OutOrStdout(), output, lines); err != nil {
				return err
			}
			bad := 0
			for _, l := range lines {
				if l.State != "serving" {
					bad++
				}
			}
			if bad > 0 {
				return fmt.Errorf("%d of %d workers do not serve", bad, len(lines))
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&file, "config", "/etc/pno/agent.yaml", "configuration `file` of the agent")
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	cmd.Flags().DurationVar(&timeout, "timeout", 5*time.Second, "longest wait for an answer")
	return cmd
}

// surveyAll asks all clusters at once: those that are tried later are looked at when
// the first is out of reach.
func surveyAll(ctx context.Context, set *agentSettings) ([]workerLine, error) {
	if len(set.Agent.Clusters) == 0 {
		return nil, errors.New("the agent has no clusters to ask; its configuration names them in agent.clusters")
	}
	id, err := mtls.Load(set.Agent.TLS)
	if err != nil {
		return nil, err
	}
	found := make([][]workerLine, len(set.Agent.Clusters))
	var asked sync.WaitGroup
	for i, c := range set.Agent.Clusters {
		cfg := c.Config(id, nil)
		if cfg.Name == "" {
			cfg.Name = fmt.Sprintf("cluster %d", i+1)
		}
		asked.Go(func() { found[i] = survey(ctx, cfg) })
	}
	asked.Wait()
	return slices.Concat(found...), nil
}

// survey asks one cluster. If its workers cannot be looked up, one line tells why.
func survey(ctx context.Context, cfg client.Config) (lines []workerLine) {
	reports, err := client.Survey(ctx, cfg)
	if err != nil {
		reports = []client.WorkerReport{{Address: strings.Join(cfg.Workers, " "), Err: err}}
	}
	for _, r := range reports {
		lines = append(lines, describe(cfg.Name, r))
	}
	return lines
}

func describe(cluster string, r client.WorkerReport) workerLine {
	l := workerLine{Cluster: cluster, Address: r.Address, State: "serving", Engines: []engineLine{}}
	if r.Err != nil {
		l.State, l.Error = "error", r.Err.Error()
		return l
	}
	if r.Info.Draining {
		l.State = "draining"
	}
	l.Name, l.MaxInflight, l.MaxBatch = r.Info.Name, r.Info.MaxInflight, r.Info.MaxBatch
	for _, e := range r.Info.Engines {
		l.Engines = append(l.Engines, engineOf(e))
	}
	return l
}

func engineOf(e *cryptov1.Engine) engineLine {
	return engineLine{e.Kind, e.Detail, e.Capacity, e.Batch, e.Simulated, append([]string{}, e.Features...)}
}

func printWorkers(out io.Writer, form string, lines []workerLine) error {
	if form == "json" {
		return writeJSON(out, lines)
	}
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "CLUSTER\tWORKER\tSTATE\tNAME\tENGINE\tCAPACITY\tFEATURES, OR ERROR")
	for _, l := range lines {
		head := []string{l.Cluster, l.Address, l.State, l.Name}
		if len(l.Engines) == 0 {
			l.Engines = []engineLine{{}}
		}
		for _, e := range l.Engines {
			cells := append(head, engineCells(e)...)
			if l.Error != "" {
				cells[len(cells)-1] = l.Error // the last, so that no other is as wide
			}
			for i := range cells {
				cells[i] = orDash(cells[i])
			}
			fmt.Fprintln(t, strings.Join(cells, "\t"))
			head = []string{`"`, `"`, `"`, `"`} // the next engine of the same worker
		}
	}
	return t.Flush()
}

func engineCells(e engineLine) []string {
	if e.Kind == "" {
		return []string{"", "", ""}
	}
	name := e.Kind
	if e.Detail != "" {
		name += " (" + e.Detail + ")"
	}
	if e.Simulated {
		name += " simulated"
	}
	return []string{name, fmt.Sprint(e.Capacity), strings.Join(e.Features, " ")}
}

// orDash makes a cell of what a worker said.
func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return terminal.Printable(s)
}

// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"pno/internal/terminal"
	adminv1 "pno/proto/pno/admin/v1"
)

func (a *App) newStatus() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Tell whether dpud and hostd are well, and which build they are",
		Long: `Tell whether dpud and hostd are well, and which build they are. The exit code is
4 if one of them reports a problem. -o wide adds the machine and its processor.`,
		Args: cobra.NoArgs,
		RunE: a.run(a.runStatus),
	}
}

func (a *App) runStatus(ctx context.Context) error {
	d, err := a.connect(ctx, needAny)
	if err != nil {
		return err
	}
	defer d.close()
	healthy := true
	for _, one := range d.each() {
		healthy = healthy && len(one.status.GetProblems()) == 0
	}
	if a.structured() {
		err = a.writeTree(statusTree(d))
	} else {
		err = a.writeStatus(d)
	}
	if err == nil && !healthy {
		err = &exitError{exitUnhealthy, errUnhealthy}
	}
	return err
}

func statusTree(d daemons) object {
	var (
		o        object
		warnings = []string{}
	)
	if d.dpu != nil {
		o = append(o, member{"dpu", treeOf(d.dpu.status.ProtoReflect())})
	}
	if d.host != nil {
		o = append(o, member{"host", treeOf(d.host.status.ProtoReflect())})
	}
	for _, one := range d.each() {
		warnings = append(warnings, skew(one)...)
	}
	return append(o, member{"warnings", warnings})
}

func (a *App) writeStatus(d daemons) error {
	t := table{titles: []string{"DAEMON", "STATE", "VERSION", "PROTOCOL", ">UP", ">PID", ">SESSIONS", ">SHARDS", "PEER"}}
	var notes []string
	for _, one := range d.each() {
		s := one.status
		state := "well"
		if len(s.GetProblems()) > 0 {
			state = "troubled"
		}
		for _, p := range s.GetProblems() {
			notes = append(notes, fmt.Sprintf("%s: %s", one.name, terminal.Printable(p)))
		}
		for _, n := range s.GetNotices() {
			notes = append(notes, fmt.Sprintf("%s: notice: %s", one.name, terminal.Printable(n)))
		}
		t.add(one.name, state, terminal.Printable(s.GetVersion()), terminal.Printable(s.GetProtocol()), a.uptime(s),
			strconv.FormatInt(s.GetPid(), 10), number(s.GetSessions()), number(uint64(s.GetShards())), peer(s))
	}
	if err := t.write(a.Stdout); err != nil {
		return err
	}
	if a.output == formatWide {
		for _, one := range d.each() {
			notes = append(notes, fmt.Sprintf("%s: %s, %s; %d CPUs, %s", one.name,
				terminal.Printable(one.status.GetPlatform()), terminal.Printable(one.status.GetGoVersion()),
				one.status.GetCpu().GetCount(), cpu(one.status.GetCpu())))
		}
	}
	for _, note := range notes {
		if _, err := fmt.Fprintln(a.Stdout, note); err != nil {
			return err
		}
	}
	return nil
}

func (a *App) uptime(s *adminv1.Status) string {
	if s.GetStartTime() == nil {
		return "-"
	}
	return age(a.Now().Sub(s.GetStartTime().AsTime()))
}

// peer says who is at the other end of the control link.
func peer(s *adminv1.Status) string {
	switch {
	case !s.GetPeerConnected():
		return "not connected"
	case s.GetPeer() != "":
		return terminal.Printable(s.GetPeer())
	}
	return "connected"
}

func cpu(c *adminv1.Cpu) string {
	model := terminal.Printable(c.GetModel())
	if model == "" {
		model = "unnamed processor"
	}
	if len(c.GetFeatures()) == 0 {
		return model
	}
	return model + " [" + terminal.Printable(strings.Join(c.GetFeatures(), " ")) + "]"
}

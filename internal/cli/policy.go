// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"pno/internal/terminal"
	adminv1 "pno/proto/pno/admin/v1"
)

// policyName is the resource's name; a host has one policy.
const policyName = "policy"

func (a *App) newPolicy() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "Show the policy in force, or explain what it does with a socket",
		Long: `Show the policy in force for processes that attach now. Loopback addresses are
decided first, then the first rule that matches decides, then the default.`,
		Args: cobra.NoArgs,
		RunE: a.run(a.runPolicy),
	}
	cmd.AddCommand(a.newExplain())
	return cmd
}

func (a *App) runPolicy(ctx context.Context) error {
	d, err := a.connect(ctx, needHost)
	if err != nil {
		return err
	}
	defer d.close()
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	answer, err := d.host.hostd().GetPolicy(ctx, &adminv1.GetPolicyRequest{Name: policyName})
	if err != nil {
		return err
	}
	p := answer.GetPolicy()
	if a.structured() {
		return a.writeTree(treeOf(p.ProtoReflect()))
	}
	_, err = fmt.Fprintf(a.Stdout, "%s: without a DPU %s, loopback %s\n", terminal.Printable(p.GetSource()), terminal.Printable(p.GetNoDpu()),
		map[bool]string{true: "by the rules", false: "kernel"}[p.GetOffloadLoopback()])
	if err != nil {
		return err
	}
	t := table{titles: []string{">LINE", "PROCESS", "OPERATION", "PROTOCOL", "ADDRESS", "PORTS", "ACTION"}}
	for _, r := range p.GetRules() {
		t.add(strconv.FormatUint(uint64(r.GetLine()), 10), orStar(terminal.Printable(r.GetProcess())), terminal.Printable(r.GetOperation()),
			terminal.Printable(r.GetProtocol()), terminal.Printable(r.GetAddress()), terminal.Printable(r.GetPorts()), terminal.Printable(r.GetAction()))
	}
	t.add("-", "*", "any", "any", "any", "any", terminal.Printable(p.GetDefaultAction()))
	return t.write(a.Stdout)
}

type explainFlags struct {
	process, listen, connect, protocol string
}

func (a *App) newExplain() *cobra.Command {
	var f explainFlags
	cmd := &cobra.Command{
		Use:   "explain",
		Short: "Tell what the policy does with a socket, and which rule says so",
		Example: `  offloadctl policy explain --process nginx --listen 198.18.0.2:80
  offloadctl policy explain --process haproxy --connect '[2001:db8::5]:443'`,
		Args: cobra.NoArgs,
		RunE: a.run(func(ctx context.Context) error { return a.runExplain(ctx, f) }),
	}
	fl := cmd.Flags()
	fl.StringVar(&f.process, "process", "", "name of the process")
	fl.StringVar(&f.listen, "listen", "", "ADDRESS:PORT that it binds")
	fl.StringVar(&f.connect, "connect", "", "ADDRESS:PORT that it connects to")
	fl.StringVar(&f.protocol, "protocol", "tcp", "tcp or udp")
	complete(cmd, "protocol", "tcp", "udp")
	return cmd
}

func (a *App) runExplain(ctx context.Context, f explainFlags) error {
	req := &adminv1.ExplainPolicyRequest{Name: policyName, Process: f.process, Protocol: f.protocol}
	switch {
	case (f.listen == "") == (f.connect == ""):
		return &exitError{exitUsage, errors.New("name the socket: either --listen or --connect")}
	case f.listen != "":
		req.Operation, req.Address = "listen", f.listen
	default:
		req.Operation, req.Address = "connect", f.connect
	}
	d, err := a.connect(ctx, needHost)
	if err != nil {
		return err
	}
	defer d.close()
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	answer, err := d.host.hostd().ExplainPolicy(ctx, req)
	if err != nil {
		return err
	}
	if a.structured() {
		return a.writeTree(treeOf(answer.GetDecision().ProtoReflect()))
	}
	_, err = fmt.Fprintf(a.Stdout, "%s: %s\n", terminal.Printable(answer.GetDecision().GetAction()), terminal.Printable(answer.GetDecision().GetReason()))
	return err
}

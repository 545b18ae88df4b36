// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"pno/bench"
)

func newHandshakeBenchCmd() *cobra.Command {
	var o bench.HandshakeOptions
	var b benchFlags
	c := &cobra.Command{
		Use:   "handshake",
		Short: "HAProxy's full TLS handshakes, with a local key and with the key in a cluster",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := b.prepare(cmd); err != nil {
				return err
			}
			o.Options = b.Options
			r, err := bench.Handshakes(cmd.Context(), o)
			if err != nil {
				return err
			}
			return printResult(cmd.OutOrStdout(), b.output, r, printHandshakes)
		},
	}
	b.add(c)
	f := c.Flags()
	f.StringSliceVar(&o.Keys, "keys", []string{"rsa2048", "p256"}, "types of key: rsa2048, rsa3072, rsa4096, p256, p384")
	f.StringSliceVar(&o.Versions, "tls", []string{"1.3", "1.2"}, "versions of TLS")
	f.IntVar(&o.Clients, "clients", 64, "clients, each with one handshake at a time")
	f.IntVar(&o.Workers, "workers", 2, "workers of the cluster")
	f.IntVar(&b.Rate, "rate", 0, "handshakes a second offered to both (0: as many as go)")
	return c
}

func printHandshakes(w io.Writer, c *bench.HandshakeComparison) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(t, "\tkey\thandshakes/s\tproxy µs\tspread\tsleeps\tagent µs\tworkers µs\tp50 µs\tp99 µs\tfailed\t\n")
	for _, row := range c.Rows {
		for _, r := range []struct {
			name string
			run  bench.HandshakeRun
		}{{"local", row.Local}, {"cluster", row.Cluster}} {
			fmt.Fprintf(t, "%s TLS %s\t%s\t%.0f\t%.1f\t%.0f %%\t%.2f\t%.1f\t%.1f\t%.0f\t%.0f\t%d\t\n", row.Key, row.TLS, r.name, r.run.Rate,
				r.run.ProxyCPU, 100*r.run.Spread, r.run.Sleeps, r.run.AgentCPU, r.run.WorkerCPU, r.run.P50, r.run.P99, r.run.Failed)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, row := range c.Rows {
		if _, err := fmt.Fprintf(w, "%s TLS %s: local ÷ cluster proxy CPU %.2f, with the agent's %.2f\n",
			row.Key, row.TLS, row.Ratio, row.HostRatio); err != nil {
			return err
		}
	}
	return nil
}

// newTLSLoadCmd is the load of newHandshakeBenchCmd, which runs it where the
// clients are.
func newTLSLoadCmd() *cobra.Command {
	var l bench.TLSLoad
	c := &cobra.Command{
		Use:    "tls-load",
		Short:  "Full TLS handshakes with a server that closes after them",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := l.Run(cmd.Context())
			if err != nil {
				return err
			}
			return json.NewEncoder(cmd.OutOrStdout()).Encode(r)
		},
	}
	f := c.Flags()
	f.StringVar(&l.Addr, "addr", "", "server, as 198.18.1.2:443; its certificate is for this IP address")
	f.StringVar(&l.Roots, "roots", "", "`file` of the authority that issued it")
	f.StringVar(&l.Version, "tls", "1.3", "version of TLS")
	f.IntVar(&l.Clients, "clients", 32, "handshakes at once")
	f.IntVar(&l.Rate, "rate", 0, "handshakes a second (0: as many as go)")
	f.DurationVar(&l.Duration, "duration", 5*time.Second, "no handshake begins after it")
	return c
}

func newCryptoRPCBenchCmd() *cobra.Command {
	var o bench.RPCOptions
	var b benchFlags
	c := &cobra.Command{
		Use:   "cryptorpc",
		Short: "The way to a worker of the crypto cluster: its cost, its latency, and simulated cards behind it",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := b.prepare(cmd); err != nil {
				return err
			}
			o.Options = b.Options
			r, err := bench.CryptoRPC(cmd.Context(), o)
			if err != nil {
				return err
			}
			return printResult(cmd.OutOrStdout(), b.output, r, printCryptoRPC)
		},
	}
	b.add(c)
	f := c.Flags()
	f.IntSliceVar(&o.Inflight, "inflight", []int{1, 32, 256}, "operations at once")
	f.IntSliceVar(&o.Cards, "cards", []int{1, 2, 4}, "simulated cards of a worker")
	f.Float64Var(&o.CardRate, "card-rate", 40_000, "operations a second of a simulated card")
	f.IntVar(&b.Rate, "rate", 500, "operations a second, one at a time, that added latency is measured at")
	return c
}

var pathNames = map[string]string{"library": "client library to worker", "agent": "socket of the key agent to worker",
	"epoll": "epoll in two threads", "net": "package net", "tls": "TLS 1.3 over package net"}

func printCryptoRPC(w io.Writer, c *bench.RPCComparison) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	line := func(name string, r bench.RPCRun) {
		fmt.Fprintf(t, "%s\t%.0f\t%.2f\t%.0f %%\t%.0f\t%.0f\t\n", name, r.Ops, r.CPU, 100*r.Spread, r.P50, r.P99)
	}
	fmt.Fprintf(t, "\tops/s\tCPU µs/op\tspread\tp50 µs\tp99 µs\t\n")
	for _, r := range c.RPC {
		line(fmt.Sprintf("%d in flight", r.Inflight), r.RPCRun)
	}
	for _, r := range c.Cards {
		line(fmt.Sprintf("%d simulated cards", r.Cards), r.RPCRun)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, r := range c.Floor {
		if _, err := fmt.Fprintf(w, "at %d/s, a message to another process and back, %s: p50 %.0f µs (spread %.0f %%), p99 %.0f µs\n",
			r.Rate, pathNames[r.Path], r.P50, 100*r.Spread, r.P99); err != nil {
			return err
		}
	}
	for _, r := range c.Latency {
		if _, err := fmt.Fprintf(w, "at %d/s, %s, %s: signature %.0f µs, in all %.0f µs; added p50 %.0f µs (spread %.0f %%), %.0f over that of epoll, p99 %.0f µs\n",
			r.Rate, r.Key, pathNames[r.Path], r.ExecP50, r.TotalP50, r.P50, 100*r.Spread, r.Over, r.P99); err != nil {
			return err
		}
	}
	return nil
}

// newFloorPeerCmd is the other side of newCryptoRPCBenchCmd's control.
func newFloorPeerCmd() *cobra.Command {
	var p bench.FloorPeer
	c := &cobra.Command{
		Use:    "floor-peer",
		Short:  "Answers messages, as plainly as can be",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			done := make(chan struct{})
			go func() { // that of main is bound to a thread
				defer close(done)
				err = p.Run(func(addr net.Addr) { fmt.Fprintf(cmd.OutOrStdout(), "listening on %v\n", addr) })
			}()
			<-done
			return err
		},
	}
	f := c.Flags()
	f.StringVar(&p.Path, "path", "net", "epoll, net or tls")
	f.StringVar(&p.Files.Cert, "cert", "", "`file` of its certificate")
	f.StringVar(&p.Files.Key, "key", "", "`file` of its key")
	f.StringVar(&p.Files.CA, "ca", "", "`file` of the authorities that it believes in")
	return c
}

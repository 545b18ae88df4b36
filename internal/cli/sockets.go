// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"pno/internal/terminal"
	adminv1 "pno/proto/pno/admin/v1"
)

// socketFlags are the filters of sockets.
type socketFlags struct {
	state, process, local, peer, filter string
	pid                                 int64
	session                             uint64
}

func (a *App) newSockets() *cobra.Command {
	var f socketFlags
	cmd := &cobra.Command{
		Use:   "sockets",
		Short: "List the offloaded sockets, as ss does",
		Long: `List the offloaded sockets, as ss does. Of a listener, RECV-Q is the connections
that wait to be accepted and SEND-Q its backlog; of a connection, the bytes that
the application has not read and those that the peer has not acknowledged.
-o wide adds where the socket lives and how it fares. Filters are combined.`,
		Example: `  offloadctl sockets --state listen
  offloadctl sockets --local :80 --peer 198.18.0.0/15
  offloadctl sockets --filter 'retransmits > 0 AND tx_queued_bytes >= 65536'`,
		Args: cobra.NoArgs,
		RunE: a.run(func(ctx context.Context) error { return a.runSockets(ctx, f) }),
	}
	fl := cmd.Flags()
	fl.StringVar(&f.state, "state", "", "TCP state: estab, listen, fin-wait-1, syn-* …")
	fl.Int64Var(&f.pid, "pid", 0, "process that holds the socket, by number")
	fl.StringVar(&f.process, "process", "", "process that holds the socket, by name")
	fl.StringVar(&f.local, "local", "", "own address: ADDRESS, PREFIX, either with :PORT, or :PORT")
	fl.StringVar(&f.peer, "peer", "", "the peer's address, in the same forms")
	fl.Uint64Var(&f.session, "session", 0, "session that holds the socket")
	fl.StringVar(&f.filter, "filter", "", "comparisons of fields (as in -o json), joined by AND")
	complete(cmd, "state", "listen", "estab", "syn-sent", "syn-recv", "fin-wait-1", "fin-wait-2", "close-wait", "closing", "last-ack", "time-wait")
	return cmd
}

// expression joins the filters into one of the API's.
func (f socketFlags) expression() string {
	var all []string
	is := func(field, value string) {
		if value != "" {
			all = append(all, field+" = "+strconv.Quote(value))
		}
	}
	is("state", f.state)
	is("process", f.process)
	is("local", f.local)
	is("peer", f.peer)
	if f.pid != 0 {
		is("pid", strconv.FormatInt(f.pid, 10))
	}
	if f.filter != "" {
		all = append(all, f.filter)
	}
	return strings.Join(all, " AND ")
}

func (f socketFlags) parent() string {
	if f.session == 0 {
		return "sessions/-"
	}
	return fmt.Sprintf("sessions/%d", f.session)
}

func (a *App) runSockets(ctx context.Context, f socketFlags) error {
	d, err := a.connect(ctx, needDPU)
	if err != nil {
		return err
	}
	defer d.close()
	sockets, err := allPages(ctx, a.timeout, func(ctx context.Context, token string) ([]*adminv1.Socket, string, error) {
		page, err := d.dpu.dpud().ListSockets(ctx, &adminv1.ListSocketsRequest{
			Parent: f.parent(), Filter: f.expression(), PageToken: token, PageSize: 5000,
		})
		return page.GetSockets(), page.GetNextPageToken(), err
	})
	if err != nil {
		return err
	}
	if a.structured() {
		return a.writeTree(object{{"sockets", trees(sockets)}})
	}
	return a.socketTable(sockets).write(a.Stdout)
}

func (a *App) socketTable(sockets []*adminv1.Socket) *table {
	t := &table{titles: []string{"STATE", ">RECV-Q", ">SEND-Q", "LOCAL", "PEER", "PROCESS"}}
	if a.output == formatWide {
		t.titles = append(t.titles, "KIND", "SESSION", ">SHARD", "HANDLE", ">CHANNEL", ">SENT", ">RECEIVED", ">RTT", ">CWND", ">RETRANS", ">HOLDERS")
	}
	for _, s := range sockets {
		recv, send := s.GetRxUnreadBytes()+s.GetRxQueuedBytes(), s.GetTxPendingBytes()+s.GetTxQueuedBytes()
		if l := s.GetListener(); l != nil {
			recv, send = uint64(l.GetUnaccepted())+uint64(l.GetWaiting()), uint64(l.GetBacklog())
		}
		row := []string{
			terminal.Printable(s.GetState()), strconv.FormatUint(recv, 10), strconv.FormatUint(send, 10),
			terminal.Printable(s.GetLocal()), orStar(terminal.Printable(s.GetPeer())), fmt.Sprintf("%s/%d", terminal.Printable(s.GetProcess()), s.GetPid()),
		}
		if a.output == formatWide {
			row = append(row, enumText(s.GetKind()), strconv.FormatUint(s.GetSession(), 10),
				strconv.FormatUint(uint64(s.GetShard()), 10), fmt.Sprintf("%08x", s.GetHandle()), home(s.GetChannel()),
				bytesize(s.GetBytesTx()), bytesize(s.GetBytesRx()), rtt(s.GetRttUs()),
				strconv.FormatUint(uint64(s.GetCwnd()), 10), strconv.FormatUint(s.GetRetransmits(), 10), strconv.FormatUint(uint64(s.GetHolders()), 10))
		}
		t.add(row...)
	}
	return t
}

// home is the channel of a socket; listeners have none, and of a shared socket
// another session may have it.
func home(channel int32) string {
	if channel < 0 {
		return "-"
	}
	return strconv.Itoa(int(channel))
}

func orStar(s string) string {
	if s == "" {
		return "*"
	}
	return s
}

func rtt(us uint64) string {
	if us == 0 {
		return "-"
	}
	return (time.Duration(us) * time.Microsecond).String()
}

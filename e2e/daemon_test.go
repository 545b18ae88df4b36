// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	adminv1 "pno/proto/pno/admin/v1"
)

// daemonConf is where the daemons of one lab are.
type daemonConf struct {
	hostdSocket, hostdAdmin string
	dpudSocket, dpudAdmin   string
	policy                  string // file; the default policy if empty
	noDPU                   bool   // hostd is alone
	shards                  int    // of the DPU; default 1
	preload                 bool   // the shim without pno run, which refuses early
	network                 string // more lines of the DPU's configuration
}

// startDaemons starts dpud in the DPU's namespace and hostd on the host, as
// two services of a machine are.
func (l *lab) startDaemons() {
	l.t.Helper()
	l.prepareDaemons()
	l.startDPUD()
	l.startHostd()
}

func (l *lab) prepareDaemons() {
	l.conf.hostdSocket, l.conf.hostdAdmin = l.path("hostd.sock"), l.path("hostd-admin.sock")
	l.conf.dpudSocket, l.conf.dpudAdmin = l.path("dpud.sock"), l.path("dpud-admin.sock")
}

func (l *lab) startDPUD() {
	l.t.Helper()
	conf := l.write("dpud.yaml", fmt.Sprintf(`shards: %d
control: %s
admin: %s
metrics: 127.0.0.1:9464
link: {interface: eth0}
addresses: [%s/24, %s/64]
log: {format: text}
%s`, max(l.conf.shards, 1), l.conf.dpudSocket, l.conf.dpudAdmin, servedAddr, servedAddr6, l.conf.network))
	l.dpud = spawn(l.t, l.dir, "dpud", l.dpu, []string{binary(l.t, "dpud"), "--config", conf}, spawnOptions{})
	l.waitDaemon(l.dpud, l.conf.dpudAdmin, func(s *adminv1.Status) bool { return true })
}

func (l *lab) startHostd() {
	l.t.Helper()
	conf := fmt.Sprintf(`listen: %s
admin: %s
metrics: 127.0.0.1:9465
dpu: %s
log:
  level: info
  format: text
`, l.conf.hostdSocket, l.conf.hostdAdmin, l.conf.dpudSocket)
	if l.conf.policy != "" {
		conf += "policy: " + l.conf.policy + "\n"
	}
	l.hostd = spawn(l.t, l.dir, "hostd", l.host, []string{binary(l.t, "hostd"), "--config", l.write("hostd.yaml", conf)}, spawnOptions{})
	l.waitDaemon(l.hostd, l.conf.hostdAdmin, func(s *adminv1.Status) bool { return l.conf.noDPU || s.GetPeerConnected() })
}

// waitDaemon waits until a daemon's admin API answers as wanted.
func (l *lab) waitDaemon(p *proc, socket string, good func(*adminv1.Status) bool) {
	l.t.Helper()
	var last error
	if !poll(30*time.Second, func() bool {
		if p.ended() {
			l.t.Fatalf("%s ended at once: %v\n%s", p.name, p.err, p.logText())
		}
		var s *adminv1.Status
		last = l.admin(socket, func(ctx context.Context, c grpc.ClientConnInterface) error {
			r, err := adminv1.NewAdminServiceClient(c).GetStatus(ctx, &adminv1.GetStatusRequest{})
			s = r.GetStatus()
			return err
		})
		return last == nil && good(s)
	}) {
		l.t.Fatalf("%s is not ready: %v\n%s", p.name, last, tail(p.logText(), 40))
	}
}

// admin runs fn with a connection to a daemon's admin API. The connection is
// closed at once: it would count among the daemon's descriptors.
func (l *lab) admin(socket string, fn func(ctx context.Context, c grpc.ClientConnInterface) error) error {
	l.t.Helper()
	c, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		l.t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return fn(ctx, c)
}

// stats asks a daemon for its counters.
func (l *lab) stats(socket string) (out *adminv1.Stats) {
	l.t.Helper()
	if err := l.admin(socket, func(ctx context.Context, c grpc.ClientConnInterface) error {
		r, err := adminv1.NewAdminServiceClient(c).GetStats(ctx, &adminv1.GetStatsRequest{})
		out = r.GetStats()
		return err
	}); err != nil {
		l.t.Fatalf("statistics of %s: %v", socket, err)
	}
	return out
}

// checkOffloaded proves that the traffic of the test went through the DPU: the
// host has no way out of its own, and both sides counted it.
func (l *lab) checkOffloaded() {
	l.t.Helper()
	if l.mode != modeOffload {
		return
	}
	links := strings.TrimSpace(l.host.Run("ip", "-o", "link", "show"))
	if strings.Count(links, "\n") > 0 || !strings.Contains(links, "LOOPBACK") {
		l.t.Errorf("the host has more than a loopback:\n%s", links)
	}
	for _, family := range []string{"-4", "-6"} {
		for route := range strings.Lines(l.host.Run("ip", family, "route", "show", "table", "all")) {
			if !strings.Contains(route, "dev lo") {
				l.t.Errorf("the host has a route: %s", route)
			}
		}
	}
	h, d := l.stats(l.conf.hostdAdmin).GetHost(), l.stats(l.conf.dpudAdmin).GetDpu()
	l.t.Logf("offloaded %d sockets, left to the kernel %v; host sent %d and received %d bytes, DPU %d and %d",
		h.GetSockets().GetOffloaded(), h.GetSockets().GetKernel(), h.GetBytesTx(), h.GetBytesRx(), d.GetBytesTx(), d.GetBytesRx())
	if h.GetSockets().GetOffloaded() == 0 || h.GetBytesTx() == 0 || h.GetBytesRx() == 0 || d.GetBytesTx() == 0 || d.GetBytesRx() == 0 {
		l.t.Error("the statistics do not show offloaded traffic")
	}
}

// dpuHolds says how many connections the DPU keeps for hosts, and how many
// bytes in rings were produced and not given back.
func (l *lab) dpuHolds() (connections int, ringUsed uint64) {
	l.t.Helper()
	connections = int(l.stats(l.conf.dpudAdmin).GetDpu().GetSockets().GetConnections())
	if err := l.admin(l.conf.dpudAdmin, func(ctx context.Context, c grpc.ClientConnInterface) error {
		r, err := adminv1.NewDpuServiceClient(c).ListRings(ctx, &adminv1.ListRingsRequest{PageSize: 5000})
		for _, ring := range r.GetRings() {
			for _, level := range []*adminv1.RingLevel{ring.GetH2D(), ring.GetD2H()} {
				// A reader gives the last records back with the next ones.
				if used := level.GetUsedBytes(); used > 256 {
					ringUsed += used
				}
			}
		}
		return err
	}); err != nil {
		l.t.Fatalf("list rings: %v", err)
	}
	return connections, ringUsed
}

// needOffload skips a test that has no sense with kernel sockets.
func (l *lab) needOffload() {
	l.t.Helper()
	if l.mode != modeOffload {
		l.t.Skip("the control run has no daemons")
	}
}

// checkGone expects nothing to be left of a process group that was killed.
func (l *lab) checkGone(p *proc) {
	l.t.Helper()
	if l.mode != modeOffload {
		return
	}
	var left []string
	if !poll(30*time.Second, func() bool {
		left = nil
		if err := l.admin(l.conf.dpudAdmin, func(ctx context.Context, c grpc.ClientConnInterface) error {
			r, err := adminv1.NewDpuServiceClient(c).ListSockets(ctx, &adminv1.ListSocketsRequest{PageSize: 5000})
			for _, s := range r.GetSockets() {
				if s.GetPid() > 0 && !alive(int(s.GetPid())) {
					left = append(left, fmt.Sprintf("%s of process %d (%s %s → %s)", s.GetName(), s.GetPid(), s.GetState(), s.GetLocal(), s.GetPeer()))
				}
			}
			return err
		}); err != nil {
			l.t.Fatalf("list sockets: %v", err)
		}
		return len(left) == 0
	}) {
		l.t.Errorf("sockets of %s are left:\n%s", p.name, strings.Join(left, "\n"))
	}
}

// offloadctl runs the command on the host and returns its standard output.
func (l *lab) offloadctl(args ...string) (string, error) {
	l.t.Helper()
	cmd := exec.Command(binary(l.t, "offloadctl"), args...)
	cmd.Env = append(cmd.Environ(), "PNO_ADMIN_DPU="+l.conf.dpudAdmin, "PNO_ADMIN_HOST="+l.conf.hostdAdmin)
	out, err := cmd.Output()
	return string(out), err
}

// diagnose logs what a hanging lab looks like: what the DPU holds, and where
// the programs of the host wait.
func (l *lab) diagnose() {
	l.t.Helper()
	if l.mode != modeOffload || l.dpud == nil {
		return
	}
	for _, args := range [][]string{{"rings"}, {"sockets"}, {"stats", "-o", "wide"}} {
		out, err := l.offloadctl(args...)
		l.t.Logf("offloadctl %v (%v):\n%s", args, err, tail(out, 120))
	}
	for pid, comm := range descendants(os.Getpid()) {
		if comm == "dpud" || comm == "hostd" || strings.HasPrefix(comm, "e2e") {
			continue
		}
		l.t.Logf("%s (%d):\n%s", comm, pid, stacks(pid))
		out, err := exec.Command("gdb", "-p", strconv.Itoa(pid), "-batch", "-ex", "thread apply all bt").CombinedOutput()
		if err == nil {
			l.t.Logf("%s", tail(string(out), 60))
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	"pno/internal/buildinfo"
	"pno/offload"
	adminv1 "pno/proto/pno/admin/v1"
)

// pingInterval is how often a daemon is asked whether it is still there. More
// often than admin.MinPing it would hang up.
const pingInterval = 20 * time.Second

// daemon is a connection to dpud or hostd.
type daemon struct {
	name   string // dpud or hostd
	conn   *grpc.ClientConn
	common adminv1.AdminServiceClient
	status *adminv1.Status // asked when the connection was made
}

func (d *daemon) hostd() adminv1.HostServiceClient { return adminv1.NewHostServiceClient(d.conn) }

func (d *daemon) dpud() adminv1.DpuServiceClient { return adminv1.NewDpuServiceClient(d.conn) }

// daemons are those that answer; a missing one is nil.
type daemons struct {
	dpu, host *daemon
}

func (d daemons) each() []*daemon {
	var all []*daemon
	for _, one := range []*daemon{d.dpu, d.host} {
		if one != nil {
			all = append(all, one)
		}
	}
	return all
}

func (d daemons) close() {
	for _, one := range d.each() {
		_ = one.conn.Close() // nothing is in flight
	}
}

// Which daemons a command needs.
type need int

const (
	needAny need = iota
	needDPU
	needHost
)

// target is an address and whether the user gave it.
type target struct {
	name, addr string
	explicit   bool
	role       adminv1.Role
}

func (a *App) target(name, flag, env, fallback string, role adminv1.Role) target {
	switch {
	case flag != "":
		return target{name, flag, true, role}
	case a.Getenv(env) != "":
		return target{name, a.Getenv(env), true, role}
	}
	return target{name, fallback, false, role}
}

// connect reaches the daemons that a command needs.
func (a *App) connect(ctx context.Context, need need) (daemons, error) {
	dpu := a.target("dpud", a.dpuAddr, EnvDPU, DefaultDPU, adminv1.Role_ROLE_DPU)
	host := a.target("hostd", a.hostAddr, EnvHost, DefaultHost, adminv1.Role_ROLE_HOST)
	switch only, other := &dpu, &host; need {
	case needHost:
		only, other = other, only
		fallthrough
	case needDPU:
		if only.addr == noAddr {
			return daemons{}, &exitError{exitUnreachable, fmt.Errorf("%s is left out (its address is none), and only it can answer this", only.name)}
		}
		only.explicit = true
		other.addr = noAddr
	}
	var (
		found  daemons
		missed []string
	)
	for _, t := range []struct {
		target
		into **daemon
	}{{dpu, &found.dpu}, {host, &found.host}} {
		if t.addr == noAddr {
			continue
		}
		d, err := a.dial(ctx, t.target)
		if err == nil {
			*t.into = d
			a.warnSkew(d)
			continue
		}
		if t.explicit || !errors.Is(err, errAbsent) {
			found.close()
			if errors.Is(err, errAddress) {
				return daemons{}, &exitError{exitUsage, err}
			}
			return daemons{}, &exitError{exitUnreachable, err}
		}
		missed = append(missed, err.Error())
	}
	if len(found.each()) == 0 {
		if len(missed) == 0 {
			missed = []string{"both addresses are none"}
		}
		return daemons{}, &exitError{exitUnreachable, fmt.Errorf("no daemon to ask: %s", strings.Join(missed, "; "))}
	}
	return found, nil
}

var (
	// errAbsent is wrapped when nobody serves at an address.
	errAbsent = errors.New("not running")
	// errAddress is wrapped when an address makes no sense.
	errAddress = errors.New("no address")
)

func (a *App) dial(ctx context.Context, t target) (*daemon, error) {
	path, ok := socketPath(t.addr)
	if !ok {
		return nil, fmt.Errorf("%q is %w of %s: want unix:///PATH, or none", t.addr, errAddress, t.name)
	}
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	if err := probe(ctx, path); err != nil {
		return nil, explain(err, t.name, path)
	}
	conn, err := grpc.NewClient("unix://"+path,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingInterval, Timeout: 10 * time.Second}))
	if err != nil {
		return nil, fmt.Errorf("reach %s at %s: %w", t.name, path, err)
	}
	d := &daemon{name: t.name, conn: conn, common: adminv1.NewAdminServiceClient(conn)}
	answer, err := d.common.GetStatus(ctx, &adminv1.GetStatusRequest{})
	if err == nil && answer.GetStatus().GetRole() != t.role {
		err = fmt.Errorf("another daemon answers there (%s)", adminv1.EnumName(
			answer.GetStatus().GetRole().Descriptor().Values().ByNumber(answer.GetStatus().GetRole().Number())))
	}
	if err != nil {
		_ = conn.Close() // never used
		return nil, fmt.Errorf("ask %s at %s: %w", t.name, path, err)
	}
	d.status = answer.GetStatus()
	return d, nil
}

// socketPath accepts unix:///PATH, unix:PATH and a plain path.
func socketPath(addr string) (string, bool) {
	path := strings.TrimPrefix(strings.TrimPrefix(addr, "unix:"), "//")
	return path, strings.HasPrefix(path, "/")
}

// probe asks the kernel whether somebody serves: its errno says more than
// gRPC's error.
func probe(ctx context.Context, path string) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return err
	}
	return conn.Close()
}

func explain(err error, name, path string) error {
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("%s is %w (there is no %s)", name, errAbsent, path)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%s is %w (nobody serves on %s)", name, errAbsent, path)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("no permission to use %s: run as root, or as a member of the group that owns it", path)
	}
	return fmt.Errorf("reach %s: %w", name, err)
}

// warnSkew tells of a daemon of another build. It matters because a new field
// reads as zero from an old daemon.
func (a *App) warnSkew(d *daemon) {
	for _, w := range skew(d) {
		a.warn("%s", w)
	}
}

func skew(d *daemon) []string {
	var out []string
	if theirs, ours := d.status.GetVersion(), buildinfo.Version(); theirs != ours {
		out = append(out, fmt.Sprintf("%s is %s, offloadctl is %s: counters that only one of them knows read as 0", d.name, theirs, ours))
	}
	var major, minor int
	if n, _ := fmt.Sscanf(d.status.GetProtocol(), "%d.%d", &major, &minor); n == 2 && major != offload.VersionMajor {
		out = append(out, fmt.Sprintf("%s speaks channel protocol %s, this build %d.%d: programs of this build cannot be offloaded by it",
			d.name, d.status.GetProtocol(), offload.VersionMajor, offload.VersionMinor))
	}
	return out
}

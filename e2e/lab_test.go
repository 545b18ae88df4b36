// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"pno/internal/netns"
)

type mode string

const (
	modeKernel  mode = "kernel"
	modeOffload mode = "offload"
)

// The one segment of the lab. The client has several addresses, so that churn
// does not run out of ports.
const (
	servedAddr  = "198.18.0.2" // what is tested: the DPU, or the host in the control run
	clientAddr  = "198.18.0.10"
	backendAddr = "198.18.0.20"
	nobodyAddr  = "198.18.0.99" // on the segment, but nobody has it
	servedAddr6 = "2001:2::2"

	clientAddrs = 8
)

//	client ─┐
//	        ├─ switch (bridge) ── dpu: dpud, AF_XDP         host: hostd, proxy;
//	backend ┘                       └── rings in memory ──     loopback only
//
// In kernel mode the host hangs on the switch in the DPU's place.
type lab struct {
	t    *testing.T
	mode mode
	dir  string

	client, backend, host *netns.NS
	sw                    *netns.NS // its ports are named client, backend and served

	dpu         *netns.NS // offload mode only, as are the daemons
	dpud, hostd *proc
	conf        daemonConf
}

// newLab builds the lab in the mode that was asked for on the command line.
func newLab(t *testing.T) *lab {
	t.Helper()
	l := newBareLab(t, mode(*modeFlag))
	if l.mode == modeOffload {
		l.startDaemons()
	}
	return l
}

// newShardedLab is newLab with several shards, and as many queues of the wire.
func newShardedLab(t *testing.T, shards int) *lab {
	t.Helper()
	l := newWiredLab(t, mode(*modeFlag), shards)
	if l.mode == modeOffload {
		l.conf.shards = shards
		l.startDaemons()
	}
	return l
}

// newBareLab builds the namespaces and starts nothing.
func newBareLab(t *testing.T, m mode) *lab {
	t.Helper()
	return newWiredLab(t, m, 1)
}

// newWiredLab is newBareLab with several queues on the DPU's wire.
func newWiredLab(t *testing.T, m mode, queues int) *lab {
	t.Helper()
	if m != modeKernel && m != modeOffload {
		t.Fatalf("-mode=%s: use offload or kernel", m)
	}
	l := &lab{t: t, mode: m}
	sw := netns.New(t, "switch")
	l.sw, l.dir = sw, workDir(t)
	l.client, l.backend, l.host = netns.New(t, "client"), netns.New(t, "backend"), netns.New(t, "host")
	netns.VethPair(t, l.client, "eth0", sw, "client")
	netns.VethPair(t, l.backend, "eth0", sw, "backend")
	for i := range clientAddrs {
		l.client.AddrAdd("eth0", fmt.Sprintf("198.18.0.%d/24", 10+i))
	}
	l.backend.AddrAdd("eth0", backendAddr+"/24")
	served := l.host
	if m == modeOffload {
		l.dpu = netns.New(t, "dpu")
		served = l.dpu
	}
	netns.VethPairWith(t, served, "eth0", sw, "served", netns.VethOptions{Queues: queues})
	if m == modeKernel {
		l.host.AddrAdd("eth0", servedAddr+"/24")
	}
	bridge(t, sw, "client", "backend", "served")

	// Churn takes ports faster than TIME_WAIT gives them back.
	l.client.Sysctl("net/ipv4/ip_local_port_range", "1024 65000")
	l.client.Sysctl("net/ipv4/tcp_tw_reuse", "1")
	return l
}

func bridge(t testing.TB, ns *netns.NS, ports ...string) {
	t.Helper()
	ns.Do(func() {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "br0"
		br := &netlink.Bridge{LinkAttrs: attrs}
		err := netlink.LinkAdd(br)
		for _, name := range ports {
			var port netlink.Link
			if err == nil {
				port, err = netlink.LinkByName(name)
			}
			if err == nil {
				err = netlink.LinkSetMaster(port, br)
			}
		}
		if err != nil {
			t.Errorf("bridge %v: %v", ports, err)
		}
	})
	ns.LinkUp("br0")
}

// workDir makes a directory for one lab. Its path is short: Unix sockets in it
// have 107 bytes for theirs.
func workDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp(os.Getenv(workEnv), "lab-")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// binary is the path of a built program: in bin/, or in PNO_E2E_BIN.
func binary(t testing.TB, name string) string {
	t.Helper()
	dir := os.Getenv("PNO_E2E_BIN")
	if dir == "" {
		dir = filepath.Join("..", "bin")
	}
	path, err := filepath.Abs(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v; run make build first", err)
	}
	return path
}

// run runs a subtest with a lab that reports to it. What it starts ends with
// it; the namespaces and daemons are shared.
func (l *lab) run(name string, fn func(l *lab)) {
	l.t.Helper()
	l.t.Run(name, func(t *testing.T) {
		sub := *l
		sub.t = t
		fn(&sub)
	})
}

// path is a file of this lab.
func (l *lab) path(name string) string { return filepath.Join(l.dir, name) }

// write creates a file of this lab.
func (l *lab) write(name, content string) string {
	l.t.Helper()
	if err := os.WriteFile(l.path(name), []byte(content), 0o644); err != nil {
		l.t.Fatal(err)
	}
	return l.path(name)
}

// app starts a program on the host, under the shim in offload mode.
func (l *lab) app(name string, argv ...string) *proc {
	l.t.Helper()
	return l.appWith(name, spawnOptions{}, argv...)
}

func (l *lab) appWith(name string, o spawnOptions, argv ...string) *proc {
	l.t.Helper()
	if l.mode == modeOffload {
		o.env = append(o.env, "PNO_HOSTD="+l.conf.hostdSocket)
		if l.conf.preload {
			o.env = append(o.env, "LD_PRELOAD="+binary(l.t, "libpno.so"))
		} else {
			argv = append([]string{binary(l.t, "pno"), "run", "--"}, argv...)
		}
	}
	return spawn(l.t, l.dir, name, l.host, argv, o)
}

// runApp runs a program on the host to its end and returns its output.
func (l *lab) runApp(name string, timeout time.Duration, argv ...string) (string, error) {
	l.t.Helper()
	p := l.appWith(name, spawnOptions{dies: true}, argv...)
	err := p.wait(timeout)
	return p.logText(), err
}

// clientRun runs a stock client program to its end and returns its output.
func (l *lab) clientRun(timeout time.Duration, argv ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	out, err := l.client.Command(ctx, argv[0], argv[1:]...).CombinedOutput()
	if ctx.Err() != nil {
		err = fmt.Errorf("not done after %v: %w", timeout, err)
	}
	return string(out), err
}

// mustClientRun is clientRun for programs that must succeed.
func (l *lab) mustClientRun(timeout time.Duration, argv ...string) string {
	l.t.Helper()
	out, err := l.clientRun(timeout, argv...)
	if err != nil {
		l.diagnose()
		l.t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
	return out
}

// waitListening waits until addr accepts connections from the client. Twice:
// the first may have been taken by a predecessor that is just dying.
func (l *lab) waitListening(p *proc, addr string) {
	l.t.Helper()
	var last error
	good := 0
	ok := poll(30*time.Second, func() bool {
		if p.ended() {
			l.t.Fatalf("%s ended instead of listening on %s: %v", p.name, addr, p.err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		var c net.Conn
		if c, last = l.client.DialContext(ctx, "tcp", addr); last == nil {
			// What publishes an address takes a connection before the server
			// does, and resets it then.
			var one [1]byte
			_ = c.SetReadDeadline(time.Now().Add(40 * time.Millisecond))
			if _, err := c.Read(one[:]); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
				last = err
			}
			c.Close()
		}
		if good++; last != nil {
			good = 0
		}
		return good == 2
	})
	if !ok {
		l.t.Fatalf("%s does not listen on %s: %v", p.name, addr, last)
	}
}

// httpClient speaks from a namespace, with a bound on each exchange.
func httpClient(ns *netns.NS, timeout time.Duration) *http.Client {
	c := ns.HTTPClient()
	c.Timeout = timeout
	return c
}

// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// site is one of the two systems compared: a host with the program that is
// measured, and a client's machine. Its network is two addresses.
type site struct {
	t                    *topology
	name                 string // "kernel" or "offload"
	hostNS, clientNS     string
	hostAddr, clientAddr string
	wrap                 []string // goes before the command line of a program on the host
	host, dpu            []int    // processes whose CPU time counts
}

// kernelSite joins host and client with a veth pair, as it comes: what an end
// receives is received by whoever sends it, so the host's core does the client's
// receive work, and the client's core the host's, which is as much. Everything
// that would give each its own (RPS, threads) has one core interrupt the other for
// a packet that is sent, as no card has to, and makes the kernel look up to
// three times as dear: docs/performance.md.
func (t *topology) kernelSite(context.Context) (*site, error) {
	s := &site{t: t, name: "kernel", hostAddr: "198.18.1.2", clientAddr: "198.18.1.1"}
	var err error
	if s.clientNS, err = t.namespace("kc"); err != nil {
		return nil, err
	}
	if s.hostNS, err = t.namespace("kh"); err != nil {
		return nil, err
	}
	return s, t.veth(s.clientNS, s.clientAddr+"/24", s.hostNS, s.hostAddr+"/24")
}

// offloadSite puts the DPU between: its AF_XDP socket is on the other end of
// the client's veth pair, and the host's namespace has nothing but a loopback.
func (t *topology) offloadSite(ctx context.Context) (*site, error) {
	s := &site{t: t, name: "offload", hostAddr: "198.18.2.2", clientAddr: "198.18.2.1"}
	var dpuNS string
	for name, ns := range map[string]*string{"oc": &s.clientNS, "od": &dpuNS, "oh": &s.hostNS} {
		var err error
		if *ns, err = t.namespace(name); err != nil {
			return nil, err
		}
	}
	if err := t.veth(s.clientNS, s.clientAddr+"/24", dpuNS, ""); err != nil {
		return nil, err
	}
	// AF_XDP sees frames as they are: the peer must finish checksums itself.
	if err := run("ip", "netns", "exec", s.clientNS, "ethtool", "-K", "eth0", "tx", "off"); err != nil {
		return nil, err
	}
	if err := errors.Join(t.thread(s.clientNS, dpuNS), t.lossless(dpuNS), t.lossless(s.clientNS)); err != nil {
		return nil, err
	}
	control := filepath.Join(t.dir, "dpud.sock")
	dpud, err := t.daemon(ctx, dpuNS, otherCore, "dpud", fmt.Sprintf(`shards: 1
control: %[1]s
admin: %[2]s/dpud-admin.sock
metrics: none
link: {driver: af_xdp, interface: eth0}
addresses: [%[3]s/24]
`, control, t.dir, s.hostAddr), control)
	if err != nil {
		return nil, err
	}
	s.dpu = []int{dpud}
	return s, t.hostd(ctx, s)
}

// hostd starts the host's agent on a site, and has programs run under it.
func (t *topology) hostd(ctx context.Context, s *site) error {
	socket := filepath.Join(t.dir, "hostd.sock")
	pid, err := t.daemon(ctx, s.hostNS, proxyCore, "hostd", fmt.Sprintf(`listen: %[1]s
dpu: %[2]s/dpud.sock
admin: %[2]s/hostd-admin.sock
metrics: none
`, socket, t.dir), socket)
	s.wrap = []string{filepath.Join(t.bin, "pno"), "run", "--hostd", socket, "--"}
	s.host = append(s.host, pid)
	return err
}

// daemon starts one of our daemons and waits for its socket.
func (t *topology) daemon(ctx context.Context, ns, core, name, conf, socket string) (int, error) {
	path, err := t.write(name+".yaml", conf)
	if err != nil {
		return 0, err
	}
	c, err := t.start(ns, core, name, filepath.Join(t.bin, name), "--config", path)
	if err != nil {
		return 0, err
	}
	return c.Process.Pid, t.waitSocket(ctx, name, socket)
}

// write makes a file in the scratch folder.
func (t *topology) write(name, text string) (string, error) {
	path := filepath.Join(t.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		return "", fmt.Errorf("write %s: %w", name, err)
	}
	return path, nil
}

// serve starts the program that is measured on the host and waits until it
// takes connections.
func (s *site) serve(ctx context.Context, port int, args ...string) error {
	c, err := s.t.start(s.hostNS, proxyCore, s.name, append(s.wrap, args...)...)
	if err != nil {
		return err
	}
	s.host = append(s.host, c.Process.Pid)
	return s.await(ctx, s.hostAddr, port, s.name)
}

// serveClient starts a server on the client's machine, as a proxy's back end.
func (s *site) serveClient(ctx context.Context, port int, name string, args ...string) error {
	if _, err := s.t.start(s.clientNS, otherCore, name, args...); err != nil {
		return err
	}
	return s.await(ctx, s.clientAddr, port, name)
}

// await waits until a server takes connections from the client's machine.
func (s *site) await(ctx context.Context, addr string, port int, name string) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	for {
		err := exec.CommandContext(ctx, "ip", "netns", "exec", s.clientNS, "timeout", "1", "bash", "-c",
			fmt.Sprintf("</dev/tcp/%s/%d", addr, port)).Run()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s takes no connection at %s port %d: %w\n%s", name, addr, port, err, s.t.log(name))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

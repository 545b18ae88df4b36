// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// offload is dpud and hostd at work.
type offload struct {
	clientNS, hostNS string
	hostdSocket      string
	dpud, hostd      int // processes
}

// offload brings up a client's namespace, the DPU with AF_XDP on the other end
// of a veth pair, and hostd in a namespace that has nothing but its loopback.
func (t *topology) offload(ctx context.Context, clientAddr, dpuAddr string) (*offload, error) {
	o := &offload{hostdSocket: filepath.Join(t.dir, "hostd.sock")}
	var dpuNS string
	for name, ns := range map[string]*string{"oc": &o.clientNS, "od": &dpuNS, "oh": &o.hostNS} {
		var err error
		if *ns, err = t.namespace(name); err != nil {
			return nil, err
		}
	}
	if err := t.veth(o.clientNS, clientAddr, dpuNS, ""); err != nil {
		return nil, err
	}
	// AF_XDP sees frames as they are: the peer must finish checksums itself.
	if err := run("ip", "netns", "exec", o.clientNS, "ethtool", "-K", "eth0", "tx", "off"); err != nil {
		return nil, err
	}
	if err := t.thread(o.clientNS, dpuNS); err != nil {
		return nil, err
	}
	control := filepath.Join(t.dir, "dpud.sock")
	dpudConf := fmt.Sprintf(`shards: 1
control: %[1]s
admin: %[2]s/dpud-admin.sock
metrics: none
link: {driver: af_xdp, interface: eth0}
addresses: [%[3]s]
`, control, t.dir, dpuAddr)
	hostdConf := fmt.Sprintf(`listen: %[1]s
dpu: %[2]s
admin: %[3]s/hostd-admin.sock
metrics: none
`, o.hostdSocket, control, t.dir)
	var err error
	if o.dpud, err = t.daemon(ctx, dpuNS, otherCore, "dpud", dpudConf, control); err != nil {
		return nil, err
	}
	o.hostd, err = t.daemon(ctx, o.hostNS, proxyCore, "hostd", hostdConf, o.hostdSocket)
	return o, err
}

// daemon starts one of our daemons and waits for its socket.
func (t *topology) daemon(ctx context.Context, ns, core, name, conf, socket string) (int, error) {
	path := filepath.Join(t.dir, name+".yaml")
	if err := os.WriteFile(path, []byte(conf), 0o644); err != nil {
		return 0, fmt.Errorf("write the configuration of %s: %w", name, err)
	}
	c, err := t.start(ns, core, name, filepath.Join(t.bin, name), "--config", path)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return c.Process.Pid, t.waitSocket(ctx, name, socket)
}

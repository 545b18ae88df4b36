// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"pno/internal/attach"
	"pno/offload"
)

// cases of the probe that need nobody else.
var aloneCases = []string{"fresh_socket", "bind_errors", "bind_port_zero", "refused", "unreachable"}

// probeAlone runs the probe on a host that nothing but itself can reach, and
// returns what it said and, apart from that, what the shim logged. binding is
// the address that the probe takes for its own.
func (l *lab) probeAlone(name, binding string) (said, logged string) {
	l.t.Helper()
	argv := script(l, "probe.py", append([]string{binding, backendAddr}, aloneCases...)...)
	out, err := l.runApp(name, 30*time.Second, argv...)
	if err != nil {
		l.t.Errorf("%s: the probe ended with %v", name, err)
	}
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, "libpno[") {
			logged += line
		} else {
			said += line
		}
	}
	return said, logged
}

// natively is what the probe says on this host without the shim.
func (l *lab) natively(binding string) string {
	l.t.Helper()
	kernel := *l
	kernel.mode = modeKernel
	said, _ := kernel.probeAlone("native", binding)
	return said
}

// TestNoHostd runs a program with nobody to attach to. pno run says so and does
// not start it; under the bare shim it works with kernel sockets, and its log
// says why.
func TestNoHostd(t *testing.T) {
	l := newBareLab(t, mode(*modeFlag))
	l.needOffload()
	l.prepareDaemons()
	out, err := l.runApp("refused", 10*time.Second, "/usr/bin/true")
	if exitCode(err) != 125 || !strings.Contains(out, l.conf.hostdSocket) {
		t.Errorf("pno run ended with %v:\n%s", err, out)
	}
	l.conf.preload = true
	said, logged := l.probeAlone("probe", "127.0.0.1")
	if want := l.natively("127.0.0.1"); said != want {
		t.Errorf("without hostd it is not as with the kernel:\n%s", sideBySide(want, said))
	}
	if !strings.Contains(logged, "hostd") || strings.Count(logged, "\n") > 2 {
		t.Errorf("the log should say once that there is no hostd:\n%s", logged)
	}
}

// TestNoDPU does what the policy says: kernel sockets, or none.
func TestNoDPU(t *testing.T) {
	for _, policy := range []string{"kernel", "refuse"} {
		t.Run(policy, func(t *testing.T) {
			l := newBareLab(t, mode(*modeFlag))
			l.needOffload()
			l.prepareDaemons()
			l.conf.noDPU, l.conf.preload = true, true
			l.conf.policy = l.write("policy.yaml", "no_dpu: "+policy+"\n")
			l.startHostd()
			said, logged := l.probeAlone("probe", servedAddr)
			if !strings.Contains(logged, "no DPU") {
				t.Errorf("the program's log does not tell that there is no DPU:\n%s", logged)
			}
			l.hostd.waitLog("no DPU", 1, 30*time.Second)
			if policy == "kernel" {
				if want := l.natively(servedAddr); said != want {
					t.Errorf("not as with the kernel:\n%s", sideBySide(want, said))
				}
				return
			}
			for _, line := range []string{"bind: ENETDOWN", "connect: ENETDOWN"} {
				if !strings.Contains(said, line) {
					t.Errorf("%q is missing:\n%s", line, said)
				}
			}
		})
	}
}

// TestWrongVersion lets each pair of parts meet with one of another protocol
// version: it is refused, the reason is logged, and the rest goes on.
func TestWrongVersion(t *testing.T) {
	l := newLab(t)
	l.needOffload()
	server := l.nginx(nginxConf{})
	l.run("shim to hostd", func(l *lab) {
		c, err := attach.Dial(l.conf.hostdSocket, 5*time.Second)
		if err != nil {
			l.t.Fatal(err)
		}
		defer c.Close()
		if err := c.Send(&attach.Hello{ABIMajor: offload.VersionMajor + 1}, 1); err != nil {
			l.t.Fatal(err)
		}
		_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
		p, err := c.Recv()
		if err != nil {
			l.t.Fatal(err)
		}
		no, ok := p.Msg.(*attach.Refused)
		if !ok || no.Err == 0 || !strings.Contains(attach.Text(no.Text[:]), "version") {
			l.t.Errorf("hostd answered %+v", p.Msg)
		}
		l.hostd.waitLog("version", 1, 30*time.Second)
	})
	l.run("hostd to dpud", func(l *lab) {
		c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: l.conf.dpudSocket, Net: "unixpacket"})
		if err != nil {
			l.t.Fatal(err)
		}
		defer c.Close()
		hello, err := offload.EncodeControl(&offload.Control{Type: offload.CtlHello, ID: 1, Version: (offload.VersionMajor + 1) << 16})
		if err != nil {
			l.t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := c.Write(hello); err != nil {
			l.t.Fatal(err)
		}
		buf := make([]byte, offload.MaxControl)
		n, err := c.Read(buf)
		if err != nil {
			l.t.Fatal(err)
		}
		m, err := offload.DecodeControl(buf[:n])
		if err != nil || m.Type != offload.CtlError || !strings.Contains(m.Error, "version") {
			l.t.Errorf("dpud answered %s (%v)", buf[:n], err)
		}
		l.dpud.waitLog("version", 1, 30*time.Second)
	})
	l.run("hostd of another version to the shim", func(l *lab) {
		l.conf.hostdSocket, l.conf.preload = l.path("other.sock"), true
		l.otherHostd()
		said, logged := l.probeAlone("probe", "127.0.0.1")
		if want := l.natively("127.0.0.1"); said != want {
			l.t.Errorf("not as with the kernel:\n%s", sideBySide(want, said))
		}
		if !strings.Contains(logged, "no offload") {
			l.t.Errorf("the log does not say why:\n%s", logged)
		}
	})
	if server.ended() {
		t.Fatal("nginx ended")
	}
	l.download(servedAddr+":80", "1m")
}

// otherHostd answers every message with the same message of another version.
func (l *lab) otherHostd() {
	l.t.Helper()
	ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: l.conf.hostdSocket, Net: "unixpacket"})
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.AcceptUnix()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				buf := make([]byte, 8192)
				for {
					n, err := c.Read(buf)
					if err != nil || n < 8 {
						return
					}
					buf[4]++ // the version is the third field
					_, _ = c.Write(bytes.Clone(buf[:n]))
				}
			}()
		}
	}()
}

// TestPolicyErrors gives every reader of a policy one with mistakes: each is
// told with its line, and nothing of it comes into force.
func TestPolicyErrors(t *testing.T) {
	l := newLab(t)
	l.needOffload()
	const bad = "default: offload\nrules:\n  - listen: any:80\n    action: ofload\n  - procesz: x\n    action: kernel\n"
	file := l.write("bad.yaml", bad)
	expect := func(what, text string) {
		t.Helper()
		for _, place := range []string{"bad.yaml:4:", "bad.yaml:5:", "process"} {
			if !strings.Contains(text, place) {
				t.Errorf("%s does not name %s:\n%s", what, place, text)
			}
		}
	}
	refused := func(name string, argv ...string) {
		t.Helper()
		p := spawn(t, l.dir, name, l.host, argv, spawnOptions{dies: true, env: []string{"PNO_HOSTD=" + l.conf.hostdSocket}})
		if err := p.wait(10 * time.Second); exitCode(err) < 1 {
			t.Errorf("%s ended with %v", name, err)
		}
		expect(name, p.logText())
	}
	refused("hostd-check", binary(t, "hostd"), "--check", "--policy", file)
	refused("pno-run", binary(t, "pno"), "run", "--policy", file, "--", "true")

	// A running hostd keeps the policy that it has.
	l.conf.policy = l.write("policy.yaml", "rules:\n  - listen: any:81\n    action: refuse\n")
	l.hostd.stop(15, 10*time.Second)
	l.startHostd()
	l.write("policy.yaml", bad)
	l.hostd.signal(1)
	l.hostd.waitLog("policy.yaml:4:", 1, 30*time.Second)
	out, err := l.runApp("nginx", 10*time.Second, l.writeNginx(nginxConf{Listen: servedAddr + ":81"})...)
	if want := fmt.Sprintf("bind() to %s:81 failed (13: Permission denied)", servedAddr); err == nil || !strings.Contains(out, want) {
		t.Errorf("the former policy is not in force: %v\n%s", err, out)
	}
	l.nginx(nginxConf{Name: "allowed"})
	l.download(servedAddr+":80", "1k")
}

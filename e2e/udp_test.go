// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"pno/internal/netns"
)

const backendAddr6 = "2001:2::20"

// datagramServer answers on port 7000 as testdata/udp.py expects.
func (l *lab) datagramServer(addr string) {
	l.t.Helper()
	open := func(port string) (c net.PacketConn) {
		var err error
		l.backend.Do(func() { c, err = net.ListenPacket("udp", net.JoinHostPort(addr, port)) })
		if err != nil {
			l.t.Fatal(err)
		}
		l.t.Cleanup(func() { c.Close() })
		return c
	}
	c, other := open("7000"), open("7002")
	go func() {
		b := make([]byte, 65536)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			word := strings.Fields(string(b[:min(n, 40)]))
			switch {
			case len(word) == 2 && word[0] == "many":
				count, _ := strconv.Atoi(word[1])
				for i := count; i > 0; i-- {
					_, _ = c.WriteTo(bytes.Repeat([]byte{'m'}, 100*i), from)
				}
			case n == 5 && word[0] == "other":
				_, _ = other.WriteTo([]byte("from elsewhere"), from)
			case len(word) == 3 && word[0] == "to":
				l.fromMany(addr, from, word[1], word[2])
			default:
				_, _ = c.WriteTo(b[:n], from)
			}
		}
	}()
}

// fromMany sends a datagram from each of several new ports.
func (l *lab) fromMany(addr string, to net.Addr, port, count string) {
	n, _ := strconv.Atoi(count)
	target := net.JoinHostPort(to.(*net.UDPAddr).IP.String(), port)
	for range n {
		l.backend.Do(func() {
			local := &net.UDPAddr{IP: net.ParseIP(addr)}
			remote, err := net.ResolveUDPAddr("udp", target)
			if err != nil {
				return
			}
			if c, err := net.DialUDP("udp", local, remote); err == nil {
				_, _ = c.Write([]byte("hit"))
				c.Close()
			}
		})
	}
}

func ipv6(l *lab, ns *netns.NS, addr string) {
	l.t.Helper()
	ns.Run("ip", "-6", "addr", "add", addr+"/64", "dev", "eth0", "nodad")
}

// TestUDPCalls compares what calls on datagram sockets do with what they do in
// the kernel.
func TestUDPCalls(t *testing.T) {
	t.Parallel() // it waits more than it works
	for _, c := range []struct {
		name, host, peer string
		shards           int
	}{
		{"IPv4", servedAddr, backendAddr, 1},
		{"IPv6", servedAddr6, backendAddr6, 1},
		{"two shards", servedAddr, backendAddr, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			calls := func(l *lab) string {
				ipv6(l, l.backend, backendAddr6)
				if l.mode == modeKernel {
					ipv6(l, l.host, servedAddr6)
				}
				l.datagramServer(c.peer)
				out, err := l.runApp("udp", 60*time.Second, script(l, "udp.py", c.host, c.peer)...)
				if err != nil {
					l.t.Errorf("it ended with %v:\n%s", err, out)
				}
				l.checkOffloaded()
				return out
			}
			want := ""
			t.Run("kernel", func(t *testing.T) { want = calls(newBareLab(t, modeKernel)) })
			if mode(*modeFlag) == modeKernel {
				t.Log(want)
				return
			}
			t.Run("offload", func(t *testing.T) {
				if got := calls(newShardedLab(t, c.shards)); got != want {
					t.Errorf("kernel | offload\n%s", sideBySide(want, got))
				}
			})
		})
	}
}

// unbound is Debian's, with two threads that share a port by SO_REUSEPORT. It
// answers for lab. itself, and asks the back end for up.
func (l *lab) unbound() *proc {
	l.t.Helper()
	var big strings.Builder
	for i := range 12 {
		fmt.Fprintf(&big, "  local-data: 'big.lab. TXT \"%s\"'\n", strings.Repeat(string(rune('a'+i)), 220))
	}
	conf := l.write("unbound.conf", fmt.Sprintf(`server:
  verbosity: 1
  username: ""
  chroot: ""
  directory: %q
  pidfile: ""
  use-syslog: no
  do-daemonize: no
  interface: %s
  interface: %s
  access-control: 0.0.0.0/0 allow
  access-control: ::/0 allow
  num-threads: 2
  so-reuseport: yes
  module-config: "iterator"
  edns-buffer-size: 4096
  max-udp-size: 4096
  local-zone: "lab." static
  local-data: "www.lab. A 192.0.2.1"
%sforward-zone:
  name: "up."
  forward-addr: %s@5353
remote-control:
  control-enable: no
`, l.dir, servedAddr, servedAddr6, big.String(), backendAddr))
	return l.app("unbound", "unbound", "-c", conf)
}

// dnsmasq is Debian's, on the kernel's sockets, knowing two names.
func (l *lab) dnsmasq(ns *netns.NS, addr string, port int) {
	l.t.Helper()
	spawn(l.t, l.dir, "dnsmasq", ns, dnsmasqArgs(addr, port), spawnOptions{})
}

func dnsmasqArgs(addr string, port int) []string {
	return []string{
		"dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--user=root", "--pid-file=",
		"--bind-interfaces", "--listen-address=" + addr, "--port=" + strconv.Itoa(port), "--log-facility=-",
		"--address=/up/192.0.2.7", "--address=/backend.lab/" + backendAddr,
	}
}

// dig asks until it is answered: the server may just be starting.
func (l *lab) dig(args ...string) (out string) {
	l.t.Helper()
	ok := poll(30*time.Second, func() bool {
		var err error
		out, err = l.clientRun(10*time.Second, append([]string{"dig", "+short", "+tries=2", "+time=2"}, args...)...)
		return err == nil && out != ""
	})
	if !ok {
		l.diagnose()
		l.t.Errorf("dig %v: %q", args, out)
	}
	return strings.TrimSpace(out)
}

// TestDNSServer runs unbound and dnsmasq as offloaded servers, asked from
// outside.
func TestDNSServer(t *testing.T) {
	l := newShardedLab(t, 2)
	l.client.Run("ip", "-6", "addr", "add", "2001:2::10/64", "dev", "eth0", "nodad")
	l.dnsmasq(l.backend, backendAddr, 5353)
	l.unbound()
	for _, server := range []string{"@" + servedAddr, "@" + servedAddr6} {
		if got := l.dig(server, "www.lab", "A"); got != "192.0.2.1" {
			t.Errorf("%s: %q", server, got)
		}
		// Longer than a packet: it comes in fragments, and the question over
		// TCP says the same.
		long := l.dig(server, "big.lab", "TXT", "+bufsize=4096", "+ignore", "+notcp")
		if n := strings.Count(long, "\n"); n != 11 || len(long) < 2600 {
			t.Errorf("%s: the long answer has %d lines, %d bytes", server, n+1, len(long))
		}
		if tcp := l.dig(server, "big.lab", "TXT", "+tcp"); len(tcp) != len(long) {
			t.Errorf("%s: %d bytes over TCP, %d over UDP", server, len(tcp), len(long))
		}
		if got := l.dig(server, "x.up", "A"); got != "192.0.2.7" {
			t.Errorf("%s, forwarded: %q", server, got)
		}
	}
	// From many ports, so that both shards and both threads get some.
	for i := range 40 {
		port := 20000 + 37*i
		if got := l.dig("-b", fmt.Sprintf("%s#%d", clientAddr, port), "@"+servedAddr, "www.lab", "A"); got != "192.0.2.1" {
			t.Fatalf("from port %d: %q", port, got)
		}
	}
	if l.mode == modeOffload {
		out, err := l.offloadctl("sockets", "-o", "wide", "--local", ":53")
		if err != nil || strings.Count(out, " datagram ") != 8 { // two addresses, threads and shards
			t.Errorf("offloadctl sockets: %v\n%s", err, out)
		}
	}
	l.checkOffloaded()
	l.app("dnsmasq-offloaded", dnsmasqArgs(servedAddr, 5300)...)
	if got := l.dig("@"+servedAddr, "-p", "5300", "y.up", "A"); !strings.HasSuffix(got, "192.0.2.7") { // refused at first
		t.Errorf("dnsmasq: %q", got)
	}
}

// TestDNSClient runs stock clients under the shim against a server outside.
func TestDNSClient(t *testing.T) {
	l := newLab(t)
	l.dnsmasq(l.backend, backendAddr, 5353)
	out, err := l.runApp("dig", 20*time.Second, "dig", "@"+backendAddr, "-p", "5353", "x.up", "A", "+short", "+tries=4", "+time=2")
	if err != nil || !strings.Contains(out, "192.0.2.7") {
		t.Errorf("dig: %v\n%s", err, out)
	}
	l.checkOffloaded()
}

// TestResolverOnLoopback: a proxy on the DPU asks the name server of its own
// host, which stays in the kernel.
func TestResolverOnLoopback(t *testing.T) {
	l := newLab(t)
	l.dnsmasq(l.host, "127.0.0.1", 53)
	l.backendNginx()
	l.nginx(nginxConf{Server: `
    resolver 127.0.0.1 ipv6=off;
    location = /1k {
      set $who backend.lab;
      proxy_pass http://$who:80;
    }`})
	l.download(servedAddr+":80", "1k")
	if l.mode != modeOffload {
		return
	}
	l.checkOffloaded()
	if n := l.stats(l.conf.hostdAdmin).GetHost().GetSockets().GetKernel()["policy"]; n == 0 {
		t.Error("no socket was left to the kernel: whom did nginx ask?")
	}
}

// TestStreamUDP has nginx balance datagrams over two workers that share a port
// by SO_REUSEPORT.
func TestStreamUDP(t *testing.T) {
	l := newShardedLab(t, 2)
	l.dnsmasq(l.backend, backendAddr, 5353)
	conf := l.write("stream.conf", fmt.Sprintf(`daemon off;
user www-data;
worker_processes 2;
pid %s;
error_log stderr warn;
load_module /usr/lib/nginx/modules/ngx_stream_module.so;
events { worker_connections 1024; }
stream {
  server {
    listen %s:53 udp reuseport;
    proxy_pass %s:5353;
    proxy_responses 1;
    proxy_timeout 2s;
  }
}
`, l.path("stream.pid"), servedAddr, backendAddr))
	l.app("nginx-stream", "nginx", "-c", conf)
	ask := func(i int) string {
		return l.dig("-b", fmt.Sprintf("%s#%d", clientAddr, 21000+41*i), "@"+servedAddr, "x.up", "A")
	}
	poll(30*time.Second, func() bool { return ask(0) == "192.0.2.7" }) // refused at first
	for i := range 30 {
		if got := ask(i); got != "192.0.2.7" {
			t.Fatalf("question %d: %q", i, got)
		}
	}
	l.checkOffloaded()
}

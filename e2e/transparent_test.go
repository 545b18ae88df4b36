// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Clients behind a router, seen from the segment: the client's namespace has
// these addresses, the DPU reaches them through it, and the back end through
// the DPU. Nobody has the addresses of the far network.
const (
	routedNet  = "198.19.0.0/24"
	routedNet6 = "2001:2:0:1::/64"
	farNet     = "198.19.1.0/24"
	farAddr    = "198.19.1.77"

	routedClients = 4
)

func routedClient(i int) string  { return fmt.Sprintf("198.19.0.%d", 10+i) }
func routedClient6(i int) string { return fmt.Sprintf("2001:2:0:1::%d", 10+i) }

// newTransparentLab is a lab in whose middle the DPU stands. There is no
// firewall rule anywhere.
func newTransparentLab(t *testing.T, policy string) *lab {
	t.Helper()
	l := newWiredLab(t, mode(*modeFlag), 2)
	l.needOffload()
	for i := range routedClients {
		l.client.AddrAdd("lo", routedClient(i)+"/32")
		l.client.AddrAdd("lo", routedClient6(i)+"/128")
	}
	l.client.Run("ip", "-6", "addr", "add", "2001:2::10/64", "dev", "eth0", "nodad")
	l.backend.Run("ip", "-6", "addr", "add", "2001:2::20/64", "dev", "eth0", "nodad")
	l.client.RouteAdd(farNet, servedAddr)
	l.backend.RouteAdd(routedNet, servedAddr)
	l.backend.Run("ip", "-6", "route", "add", routedNet6, "via", servedAddr6)
	l.conf.shards = 2
	l.conf.network = fmt.Sprintf("routes:\n  - {to: %s, via: %s}\n  - {to: %q, via: %q}\n", routedNet, clientAddr, routedNet6, "2001:2::10")
	if policy != "" {
		l.conf.policy = l.write("policy.yaml", policy)
	}
	l.startDaemons()
	return l
}

// from is an HTTP client at one of the client's addresses.
func (l *lab) from(addr string) *http.Client {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(addr)}, Timeout: 5 * time.Second}
	return &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		MaxIdleConnsPerHost: 2,
		DialContext: func(ctx context.Context, network, address string) (c net.Conn, err error) {
			l.client.Do(func() { c, err = d.DialContext(ctx, network, address) })
			return c, err
		},
	}}
}

// whoAsks has every client ask a proxy many times, on old connections and new
// ones, for whom the back end sees.
func (l *lab) whoAsks(url string, clients func(int) string) {
	l.t.Helper()
	var wg sync.WaitGroup
	for i := range routedClients {
		c, want := l.from(clients(i)), clients(i)
		wg.Go(func() {
			for n := range 60 {
				req, _ := http.NewRequest("GET", url, nil)
				req.Close = n%3 == 0
				r, err := c.Do(req)
				if err != nil {
					l.t.Errorf("%s: %v", want, err)
					return
				}
				b, err := io.ReadAll(r.Body)
				r.Body.Close()
				if got := strings.TrimSpace(string(b)); err != nil || got != want {
					l.t.Errorf("the back end sees %q (%v), want %s", got, err, want)
					return
				}
			}
		})
	}
	wg.Wait()
}

// checkPage fetches one object whole.
func (l *lab) checkPage(c *http.Client, url string, o object) {
	l.t.Helper()
	r, err := c.Get(url)
	if err != nil {
		l.t.Error(err)
		return
	}
	defer r.Body.Close()
	if b, err := io.ReadAll(r.Body); err != nil || sumHex(b) != o.Sum {
		l.t.Errorf("%s: %d bytes of %d, %v, or others", url, len(b), o.Size, err)
	}
}

// checkNeighbours expects nobody on the segment to take the DPU for the owner
// of an address that is not its own.
func (l *lab) checkNeighbours() {
	l.t.Helper()
	for name, ns := range map[string]interface {
		Run(string, ...string) string
	}{"client": l.client, "back end": l.backend} {
		for line := range strings.Lines(ns.Run("ip", "neigh", "show")) {
			if strings.HasPrefix(line, "198.19.") || strings.HasPrefix(line, "2001:2:0:1:") {
				l.t.Errorf("the %s has a neighbour that nobody is: %s", name, line)
			}
		}
	}
}

const seenFrom = `location /from { default_type text/plain; return 200 "$remote_addr\n"; }`

// TestTransparentHAProxy has stock HAProxy speak to its back end from the
// address of each client, over both families.
func TestTransparentHAProxy(t *testing.T) {
	l := newTransparentLab(t, "")
	l.kernelNginx(l.backend, nginxConf{Name: "backend", Listen: backendAddr + ":80", Server: "listen [2001:2::20]:80;\n" + seenFrom})
	conf := l.write("haproxy.cfg", fmt.Sprintf(`global
  nbthread 2
  log stderr format raw local0 notice
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  retries 0
frontend web
  bind %[2]s
  use_backend six if { src %[3]s }
  default_backend four
backend four
  source 0.0.0.0 usesrc clientip
  server one %[4]s:80
frontend same
  bind %[1]s:82
  default_backend same
backend same
  source 0.0.0.0 usesrc client
  server one %[4]s:80
backend six
  source :::0 usesrc clientip
  server one [2001:2::20]:80
frontend web6
  bind [%[5]s]:80
  default_backend six
`, servedAddr, haHTTP, routedNet6, backendAddr, servedAddr6))
	p := l.app("haproxy", "haproxy", "-db", "-f", conf)
	l.waitListening(p, haHTTP)
	l.run("IPv4", func(l *lab) { l.whoAsks("http://"+haHTTP+"/from", routedClient) })
	l.run("IPv6", func(l *lab) { l.whoAsks("http://["+servedAddr6+"]:80/from", routedClient6) })
	l.run("their ports too", func(l *lab) { l.whoAsks("http://"+servedAddr+":82/from", routedClient) })
	l.run("content", func(l *lab) {
		for _, o := range testSite(l.t).pick("64b", "64k", "1m", "16m") {
			l.checkPage(l.from(routedClient(0)), "http://"+haHTTP+"/"+o.Name, o)
		}
	})
	l.checkNeighbours()
	l.checkOffloaded()
}

// TestTransparentNginx is the same with stock nginx, whose workers keep
// CAP_NET_RAW alone for it.
func TestTransparentNginx(t *testing.T) {
	l := newTransparentLab(t, "")
	l.kernelNginx(l.backend, nginxConf{Name: "backend", Listen: backendAddr + ":80", Server: "listen [2001:2::20]:80;\n" + seenFrom})
	l.nginx(nginxConf{Workers: 2, Server: fmt.Sprintf(`listen [%s]:80;
    location /from { proxy_bind $remote_addr transparent; proxy_pass http://%s:80; }
    location /six/ { proxy_bind $remote_addr transparent; proxy_pass http://[2001:2::20]:80/; }
    location /via/ { proxy_bind $remote_addr transparent; proxy_pass http://%s:80/; }`,
		servedAddr6, backendAddr, backendAddr)})
	l.run("IPv4", func(l *lab) { l.whoAsks("http://"+servedAddr+"/from", routedClient) })
	l.run("IPv6", func(l *lab) { l.whoAsks("http://["+servedAddr6+"]/six/from", routedClient6) })
	l.run("content", func(l *lab) {
		for _, o := range testSite(l.t).pick("64b", "64k", "1m", "16m") {
			l.checkPage(l.from(routedClient(1)), "http://"+servedAddr+"/via/"+o.Name, o)
		}
	})
	l.checkNeighbours()
	l.checkOffloaded()
}

// TestTransparentListener takes connections to any destination, and only on
// the socket that asked for them.
func TestTransparentListener(t *testing.T) {
	l := newTransparentLab(t, "")
	p := l.app("listener", script(l, "transparent.py", "listen")...)
	p.waitLog("ready", 1, 30*time.Second)
	ask := func(addr string, wait time.Duration) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), wait)
		defer cancel()
		c, err := l.client.DialContext(ctx, "tcp", addr)
		if err != nil {
			return "", err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		b, err := io.ReadAll(c)
		return string(b), err
	}
	for addr, want := range map[string]string{
		servedAddr + ":7400": servedAddr + " 7400 1\n", // the DPU's own address
		farAddr + ":7400":    farAddr + " 7400 1\n",
		"198.19.1.78:7400":   "198.19.1.78 7400 1\n",
		servedAddr + ":7401": servedAddr + " 7401 0\n", // an ordinary listener
		farAddr + ":7402":    farAddr + " 7402 1\n",    // bound to that address
	} {
		if got, err := ask(addr, 10*time.Second); got != want {
			t.Errorf("connection to %s: %q, %v; want %q", addr, got, err, want)
		}
	}
	// Neither an answer nor a reset, as from a host that forwards nothing.
	for _, addr := range []string{farAddr + ":7401", "198.19.1.78:7402", farAddr + ":7403"} {
		if got, err := ask(addr, 1500*time.Millisecond); err == nil || !os.IsTimeout(err) {
			t.Errorf("connection to %s: %q, %v; want no answer", addr, got, err)
		}
	}
	// The DPU does not say that it has an address of its network either.
	if _, err := ask(nobodyAddr+":7400", 5*time.Second); err == nil {
		t.Errorf("the DPU answers for %s", nobodyAddr)
	}
	l.checkNeighbours()
	p.ending = true
	p.signal(syscall.SIGTERM)
}

// TestTransparentRights holds that who may not gets EPERM, from the kernel or
// from the policy.
func TestTransparentRights(t *testing.T) {
	const mine = "transparent: [nginx, \"hap*\"]\n"
	for _, c := range []struct {
		name, policy, user, want string
	}{
		{"root", "", "root", "IP_TRANSPARENT ok\nIPV6_TRANSPARENT ok\nIP_FREEBIND ok\nbind ok\nbind free ok\nconnect free ENETUNREACH\n"},
		{"not privileged", "", "nobody", "IP_TRANSPARENT EPERM\nIPV6_TRANSPARENT EPERM\nIP_FREEBIND ok\nbind EADDRNOTAVAIL\nbind free ok\nconnect free ENETUNREACH\n"},
		{"policy names others", mine, "root", "IP_TRANSPARENT EPERM\nIPV6_TRANSPARENT EPERM\nIP_FREEBIND ok\nbind EADDRNOTAVAIL\nbind free ok\nconnect free ENETUNREACH\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newTransparentLab(t, c.policy)
			if err := os.Chmod(l.conf.hostdSocket, 0o666); err != nil {
				t.Fatal(err)
			}
			argv := script(l, "transparent.py", "rights", backendAddr)
			if c.user != "root" {
				argv = append([]string{"setpriv", "--reuid", c.user, "--regid", "nogroup", "--clear-groups"}, argv...)
			}
			out, err := l.runApp("rights", 20*time.Second, argv...)
			if err != nil || out != c.want {
				t.Errorf("%v, it says\n%s, want\n%s", err, out, c.want)
			}
		})
	}
}

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/http"
	"syscall"
	"testing"
	"time"
)

// webServer is a web server that serves the test's site on port 80 of the DPU.
type webServer struct {
	name   string
	argv   func(l *lab, root string) []string
	stop   syscall.Signal
	closes bool // it serves one request a connection
}

func webServers() []webServer {
	return []webServer{
		{name: "lighttpd, epoll", argv: lighttpd("linux-sysepoll", 2), stop: syscall.SIGTERM},
		{name: "lighttpd, poll", argv: lighttpd("poll", 0), stop: syscall.SIGINT},
		{name: "apache2, event", argv: apache("event"), stop: syscall.SIGTERM},
		{name: "apache2, prefork", argv: apache("prefork"), stop: syscall.SIGTERM},
		{name: "Python http.server", argv: pythonHTTP, stop: syscall.SIGINT, closes: true},
		{name: "Node.js http", argv: nodeHTTP("http"), stop: syscall.SIGTERM},
		{name: "Node.js cluster, master accepts", argv: nodeHTTP("rr"), stop: syscall.SIGTERM},
		{name: "Node.js cluster, workers accept", argv: nodeHTTP("shared"), stop: syscall.SIGTERM},
	}
}

// TestWebServers runs every web server but nginx, which has tests of its own.
func TestWebServers(t *testing.T) {
	for _, w := range webServers() {
		t.Run(w.name, func(t *testing.T) {
			l := simLab(t)
			site := testSite(t)
			g := l.program("web", spawnOptions{}, published80(), w.argv(l, site.root)...)
			g.waitServing(published, "1b")
			l.download(published, "16m")
			l.runLoad("load", loadSpec{Addr: published, Objects: site.pick("1b", "1k", "64k", "1m"), Conns: 16, Requests: 320, Close: w.closes})
			g.stop(w.stop, 17)
		})
	}
}

func lighttpd(handler string, workers int) func(*lab, string) []string {
	return func(l *lab, root string) []string {
		conf := l.write("lighttpd.conf", fmt.Sprintf(`
server.document-root = %q
server.bind = %q
server.port = 80
server.event-handler = %q
server.max-worker = %d
server.errorlog = %q
`, root, servedAddr, handler, workers, l.path("lighttpd-error.log")))
		return []string{debian(l.t, "/usr/sbin/lighttpd"), "-D", "-f", conf}
	}
}

func apache(mpm string) func(*lab, string) []string {
	return func(l *lab, root string) []string {
		conf := l.write("apache.conf", fmt.Sprintf(`
LoadModule mpm_%s_module /usr/lib/apache2/modules/mod_mpm_%s.so
LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
ServerName localhost
ServerRoot %s
DefaultRuntimeDir %s
PidFile %s
ErrorLog %s
User www-data
Group www-data
Listen %s:80
DocumentRoot %s
StartServers 2
KeepAliveTimeout 2
`, mpm, mpm, l.dir, l.dir, l.path("apache.pid"), l.path("apache-error.log"), servedAddr, root))
		return []string{debian(l.t, "/usr/sbin/apache2"), "-D", "FOREGROUND", "-f", conf}
	}
}

func pythonHTTP(_ *lab, root string) []string {
	return []string{"/usr/bin/python3", "-u", "-m", "http.server", "--bind", servedAddr, "--directory", root, "80"}
}

func nodeHTTP(how string) func(*lab, string) []string {
	return func(l *lab, root string) []string {
		return append([]string{debian(l.t, "node")}, script(l, "serve.js", how, servedAddr, "80", root)[2:]...)
	}
}

// waitServing waits for the first good answer: the edge accepts connections
// before there is a server to hand them to.
func (g *program) waitServing(addr, name string) {
	g.t.Helper()
	client := httpClient(g.client, 2*time.Second)
	var last error
	if !poll(30*time.Second, func() bool {
		if g.p.ended() {
			g.t.Fatalf("%s ended instead of serving: %v\n%s", g.name, g.p.err, tail(g.p.logText(), 40))
		}
		var resp *http.Response
		if resp, last = client.Get("http://" + addr + "/" + name); last == nil {
			resp.Body.Close()
		}
		return last == nil && resp.StatusCode == http.StatusOK
	}) {
		g.t.Fatalf("%s does not serve on %s: %v", g.name, addr, last)
	}
	client.CloseIdleConnections()
}

// TestVarnish puts a cache with its pools of threads between clients and a
// server: offloaded to both.
func TestVarnish(t *testing.T) {
	l := simLab(t)
	site := testSite(t)
	l.webService("127.0.0.1:9080", http.FileServer(http.Dir(site.root)), nil)
	g := l.program("varnish", spawnOptions{}, append(published80(), "--forward", "198.18.0.100:80=127.0.0.1:9080"),
		debian(t, "/usr/sbin/varnishd"), "-F", "-j", "none", "-T", "none", "-n", l.path("varnish"), "-a", servedAddr+":80",
		"-b", "198.18.0.100:80", "-s", "malloc,64m", "-p", "thread_pool_min=10")
	g.waitServing(published, "1b")
	l.download(published, "16m")
	l.runLoad("load", loadSpec{Addr: published, Objects: site.pick("1b", "1k", "64k", "1m"), Conns: 16, Requests: 320})
	if r := g.stop(syscall.SIGINT, 18); r.DPU.Sockets.Connected == 0 {
		t.Error("no connection to the server was offloaded")
	}
}

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"crypto/tls"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestCurl is an offloaded client: many transfers at once, in both directions,
// over HTTP and HTTPS, to a server in the kernel.
func TestCurl(t *testing.T) {
	l := simLab(t)
	site := testSite(t)
	l.webService("127.0.0.1:9080", http.FileServer(http.Dir(site.root)), nil)
	secure := l.webService("127.0.0.1:9443", http.FileServer(http.Dir(site.root)), &tls.Config{})
	l.sink(l.host, "127.0.0.1:9000")
	ca := l.write("ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw})))

	flags := []string{
		"--forward", "198.18.0.100:80=127.0.0.1:9080",
		"--forward", "198.18.0.100:443=127.0.0.1:9443",
		"--forward", "198.18.0.100:9000=127.0.0.1:9000",
	}
	curl := []string{"curl", "-sS", "--fail-early", "--max-time", "60"}
	transfers := func(name string, sockets uint64, more ...string) {
		t.Run(name, func(t *testing.T) {
			sub := *l
			sub.t = t
			g := sub.program(strings.ReplaceAll(name, " ", "-"), spawnOptions{dies: true}, flags, append(curl, more...)...)
			g.finish(60*time.Second, sockets)
		})
	}
	names := []string{"1b", "1k", "64k", "1m", "16m"}
	fetched := l.path("fetched")
	fetch := []string{"-f", "--parallel", "--parallel-immediate", "--parallel-max", "20", "--create-dirs", "--cacert", ca,
		"--resolve", "example.com:443:198.18.0.100", "--http1.1"}
	for i := range 4 {
		for _, name := range names {
			fetch = append(fetch, "-o", fmt.Sprintf("%s/plain-%d/%s", fetched, i, name), "http://198.18.0.100/"+name,
				"-o", fmt.Sprintf("%s/secure-%d/%s", fetched, i, name), "https://example.com/"+name)
		}
	}
	transfers("parallel", 8, fetch...)
	copies, _ := filepath.Glob(fetched + "/*/*")
	if len(copies) != 8*len(names) {
		t.Errorf("%d files were fetched, not %d", len(copies), 8*len(names))
	}
	for _, path := range copies {
		if want := site.objects[filepath.Base(path)].Sum; fileSum(t, path) != want {
			t.Errorf("%s has another sum than %s", path, want)
		}
	}
	transfers("one connection", 1, "-f", "-o", os.DevNull, "http://198.18.0.100/[1-1]k", "-o", os.DevNull, "http://198.18.0.100/1m")
	transfers("upload", 1, "-f", "-H", "Expect:", "-T", site.objects["16m"].File, "http://198.18.0.100:9000/16m")
	if sums, err := os.ReadFile(l.path("upload.log")); err != nil || strings.TrimSpace(string(sums)) != site.objects["16m"].Sum {
		t.Errorf("the service got sum %s, not %s (%v)", sums, site.objects["16m"].Sum, err)
	}
}

// webService is a web server of the kernel's, in the lab's namespace.
func (l *lab) webService(addr string, h http.Handler, conf *tls.Config) *httptest.Server {
	l.t.Helper()
	ln, err := l.host.Listen("tcp", addr)
	if err != nil {
		l.t.Fatal(err)
	}
	s := &httptest.Server{Listener: ln, Config: &http.Server{Handler: h}, TLS: conf}
	if conf != nil {
		s.StartTLS()
	} else {
		s.Start()
	}
	l.t.Cleanup(s.Close)
	return s
}

// TestAsyncio runs streams of Python's event loop, server and clients, both
// offloaded, with the loop's several selectors.
func TestAsyncio(t *testing.T) {
	for _, selector := range []string{"epoll", "poll", "select"} {
		t.Run(selector, func(t *testing.T) {
			l := simLab(t)
			g := l.program("asyncio", spawnOptions{dies: true}, []string{"--offload-loopback"}, script(l, "streams.py", selector)...)
			r := g.finish(60*time.Second, 81)
			if r.BytesRx < 40*(1<<20) {
				t.Errorf("only %d bytes were received by way of the DPU", r.BytesRx)
			}
		})
	}
}

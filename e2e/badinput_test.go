// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"
)

// inBothModes runs fn with kernel sockets and under the shim, and expects the
// same words.
func inBothModes(t *testing.T, fn func(l *lab) string) {
	t.Helper()
	var want, got string
	t.Run("kernel", func(t *testing.T) { want = fn(newBareLab(t, modeKernel)) })
	if mode(*modeFlag) == modeKernel {
		t.Logf("kernel:\n%s", want)
		return
	}
	t.Run("offload", func(t *testing.T) { got = fn(newLab(t)) })
	if got != want {
		t.Errorf("kernel:\n%s\noffload:\n%s", want, got)
	}
}

var stamp = regexp.MustCompile(`(?m)^\d{4}/\d\d/\d\d \d\d:\d\d:\d\d (\[\w+\]) \d+#\d+: `)

// TestAddressInUse starts a second nginx on the port of the first.
func TestAddressInUse(t *testing.T) {
	inBothModes(t, func(l *lab) string {
		l.nginx(nginxConf{})
		argv := l.writeNginx(nginxConf{Name: "second"})
		out, err := l.runApp("second", 15*time.Second, argv...)
		l.download(servedAddr+":80", "1k") // the first is as well as before
		return fmt.Sprintf("exit %d\n%s", exitCode(err), stamp.ReplaceAllString(out, "$1 "))
	})
}

// TestAddressNotOurs binds an address that nobody on this side has.
func TestAddressNotOurs(t *testing.T) {
	inBothModes(t, func(l *lab) string {
		argv := l.writeNginx(nginxConf{Listen: "198.18.0.77:80"})
		out, err := l.runApp("nginx", 15*time.Second, argv...)
		return fmt.Sprintf("exit %d\n%s", exitCode(err), stamp.ReplaceAllString(out, "$1 "))
	})
}

// TestBadBackEnd lets HAProxy and nginx reach for back ends that refuse, are
// not there, or reset, and compares what they tell the client and the log.
func TestBadBackEnd(t *testing.T) {
	inBothModes(t, func(l *lab) string {
		l.scripted()
		l.nginx(nginxConf{Server: fmt.Sprintf(`
    proxy_connect_timeout 10s;
    location /refused { proxy_pass http://%[1]s:7001/; }
    location /nobody { proxy_pass http://%[2]s:7000/; }
    location /no-route { proxy_pass http://203.0.113.1:7000/; }
    location /resets { proxy_pass http://%[1]s:7000/; }
    location /fine { proxy_pass http://%[1]s:80/1k; }`, backendAddr, nobodyAddr)})
		l.backendNginx()
		var said strings.Builder
		for _, path := range []string{"refused", "nobody", "no-route", "resets", "fine"} {
			out := l.mustClientRun(20*time.Second, "curl", "-s", "--max-time", "15", "-o", "/dev/null", "-w", "%{http_code}", "http://"+servedAddr+"/"+path)
			fmt.Fprintf(&said, "/%s: %s\n", path, out)
		}
		content := (&proc{log: l.path("nginx.log")}).logText()
		for line := range strings.Lines(content) {
			if strings.Contains(line, "[error]") {
				line = stamp.ReplaceAllString(line, "$1 ")
				// The kernel refuses a peer without a route within connect();
				// the DPU is not asked there (no round trip on a hot call), and
				// the same errno comes a moment later.
				line = strings.Replace(line, "connect() to 203.0.113.1:7000 failed", "connect() failed", 1)
				said.WriteString(connectionNumber.ReplaceAllString(line, ""))
			}
		}
		return said.String()
	})
}

var connectionNumber = regexp.MustCompile(`\*\d+ `)

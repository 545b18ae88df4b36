// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestDaemons looks at the daemons alone: they answer on the wire, to
// offloadctl and to Prometheus, and end well.
func TestDaemons(t *testing.T) {
	l := newLab(t)
	l.needOffload()
	l.run("on the wire", func(l *lab) {
		ctx, cancel := context.WithTimeout(l.t.Context(), 20*time.Second)
		defer cancel()
		if _, err := l.client.DialContext(ctx, "tcp", servedAddr+":80"); err == nil || !strings.Contains(err.Error(), "connection refused") {
			l.t.Errorf("a port that nobody listens on: %v", err)
		}
	})
	l.run("offloadctl", func(l *lab) {
		for _, args := range [][]string{{"status"}, {"version"}, {"stats"}, {"sockets"}, {"rings"}} {
			table, err := l.offloadctl(args...)
			if err != nil || strings.TrimSpace(table) == "" {
				l.t.Errorf("offloadctl %v: %v\n%s", args, err, table)
			}
			out, err := l.offloadctl(append(args, "-o", "json")...)
			if err != nil || !json.Valid([]byte(out)) {
				l.t.Errorf("offloadctl %v -o json: %v\n%s", args, err, out)
			}
		}
	})
	l.run("metrics", func(l *lab) {
		for where, url := range map[string]string{l.dpu.Name(): "http://127.0.0.1:9464/metrics", l.host.Name(): "http://127.0.0.1:9465/metrics"} {
			ns := l.dpu
			if where == l.host.Name() {
				ns = l.host
			}
			out := ns.Run("sh", "-c", "curl -sSf "+url+" | promtool check metrics")
			if strings.TrimSpace(out) != "" {
				l.t.Errorf("promtool on %s: %s", url, out)
			}
		}
	})
	l.run("end", func(l *lab) {
		l.hostd.t, l.dpud.t = l.t, l.t
		l.hostd.stop(syscall.SIGTERM, 10*time.Second)
		l.dpud.stop(syscall.SIGTERM, 10*time.Second)
	})
}

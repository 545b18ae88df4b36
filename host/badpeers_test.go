// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bytes"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestWarningsOfOneUserAreBounded(t *testing.T) {
	b := newBadPeers(quiet())
	now := time.Now()
	shown := 0
	for range 1000 {
		if _, ok := b.allow(1, now); ok {
			shown++
		}
	}
	if shown != warnBurst {
		t.Errorf("%d lines of %d are shown", shown, 1000)
	}
	if _, ok := b.allow(2, now); !ok {
		t.Error("one user hides another's line")
	}
	if hidden, ok := b.allow(1, now.Add(warnWindow)); !ok || hidden != 1000-warnBurst {
		t.Errorf("afterwards: shown %v, %d were not", ok, hidden)
	}
	b.allow(3, now.Add(3*warnWindow))
	if len(b.users) > 2 {
		t.Errorf("%d users are remembered", len(b.users))
	}
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) lines(with string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Count(s.b.String(), with)
}

// A peer that sends nonsense again and again is counted each time, and told of
// a few times.
func TestBadPeersDoNotFloodTheLog(t *testing.T) {
	var out syncBuffer
	e := newBench(t, func(c *Config) { c.Log = slog.New(slog.NewTextHandler(&out, nil)) })
	const times = 50
	for range times {
		c, err := net.Dial("unixpacket", e.listen)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write([]byte("nonsense"))
		_, _ = io.ReadAll(c)
		_ = c.Close()
	}
	for end := time.Now().Add(10 * time.Second); e.Report().Agent.ProtocolErrors < times; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d counted", e.Report().Agent.ProtocolErrors)
		}
	}
	if n := out.lines("attach connection ended"); n == 0 || n > 2*warnBurst {
		t.Errorf("%d lines about %d bad peers", n, times)
	}
}

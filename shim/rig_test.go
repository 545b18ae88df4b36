// SPDX-License-Identifier: Apache-2.0

package shim_test

import (
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"pno/shim"
	"pno/sim/edge"
	"pno/sim/topology"
)

// dpuAddr is the simulated DPU's own address, edgeAddr the wire's far end.
const dpuAddr = "198.18.0.2"

// startSim brings a private DPU up and has this process use it.
func startSim(t testing.TB, shards int, more ...func(*topology.Config)) *topology.Sim {
	t.Helper()
	t.Setenv("TMPDIR", t.TempDir())
	p := topology.Policy()
	p.OffloadLoopback = true
	cfg := topology.Config{Shards: shards, Policy: p}
	for _, f := range more {
		f(&cfg)
	}
	s, err := topology.Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	for _, kv := range s.Env() {
		if k, v, _ := cut(kv); k == "PNO_HOSTD" {
			t.Setenv(k, v)
		}
	}
	return s
}

func cut(kv string) (k, v string, ok bool) {
	for i := range kv {
		if kv[i] == '=' {
			return kv[:i], kv[i+1:], true
		}
	}
	return kv, "", false
}

func publish(cfg *topology.Config) {
	cfg.Publish = []edge.Mapping{{
		Outside: netip.MustParseAddrPort("127.0.0.1:0"), Inside: netip.MustParseAddrPort(dpuAddr + ":80"),
	}}
}

func listen(t testing.TB, address string) *shim.Listener {
	t.Helper()
	l, err := shim.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	ln, ok := l.(*shim.Listener)
	if !ok {
		t.Fatalf("Listen %s gives a %T: it is not offloaded", address, l)
	}
	t.Cleanup(func() { _ = ln.Close() })
	return ln
}

func dial(t testing.TB, address string) *shim.Conn {
	t.Helper()
	d := shim.Dialer{Timeout: 20 * time.Second}
	c, err := d.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	conn, ok := c.(*shim.Conn)
	if !ok {
		t.Fatalf("Dial %s gives a %T: it is not offloaded", address, c)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// pair is a connection through the DPU's stack, and both its ends.
func pair(t testing.TB) (client, server *shim.Conn) {
	t.Helper()
	l := listen(t, "127.0.0.1:0")
	defer func() { _ = l.Close() }()
	return pairOn(t, l)
}

func pairOn(t testing.TB, l *shim.Listener) (client, server *shim.Conn) {
	t.Helper()
	client = dial(t, l.Addr().String())
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return client, c.(*shim.Conn)
}

// echo serves a listener until it is closed.
func echo(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer func() { _ = c.Close() }()
			_, _ = io.Copy(c, c)
		}()
	}
}

// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"net"
	"strings"
	"testing"
	"time"
)

// The names are an interface, as those of TestComparisonNames.
func TestCryptoNames(t *testing.T) {
	for _, tt := range []struct {
		result any
		names  string
	}{
		{HandshakeComparison{Rows: []HandshakeRow{{Cluster: HandshakeRun{Runs: []HandshakeRun{{}}}}}},
			"benchmark clients workers rate_offered rows key tls local cluster ratio host_ratio handshakes_per_s proxy_cpu_us proxy_user_us proxy_sleeps " +
				"agent_cpu_us worker_cpu_us p50_us p99_us failed proxy_cpu_spread runs machine"},
		{RPCComparison{RPC: []RPCRow{{}}, Latency: []LatencyRow{{}}, Floor: []FloorRow{{}}, Cards: []CardRow{{RPCRun: RPCRun{Runs: []RPCRun{{}}}}}},
			"benchmark rpc inflight ops_per_s cpu_us_per_op cpu_spread latency key path rate_offered signature_p50_us total_p50_us " +
				"added_p50_us added_p99_us added_over_floor_us floor computed_us p50_spread cards simulated_cards card_ops_per_s efficiency p50_us p99_us runs machine"},
	} {
		b, err := json.Marshal(tt.result)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range strings.Fields(tt.names) {
			if !strings.Contains(string(b), `"`+name+`":`) {
				t.Errorf("no %s in %s", name, b)
			}
		}
	}
}

func TestMedianHandshakes(t *testing.T) {
	m := medianHandshakes([]HandshakeRun{{ProxyCPU: 300, AgentCPU: 9, Failed: 1}, {ProxyCPU: 200, AgentCPU: 7}, {ProxyCPU: 400, AgentCPU: 8, Failed: 2}})
	if m.ProxyCPU != 300 || m.AgentCPU != 8 || m.Failed != 3 || m.Spread < 0.66 || m.Spread > 0.67 || len(m.Runs) != 3 {
		t.Errorf("got %+v", m)
	}
}

func TestCryptoOptions(t *testing.T) {
	good := HandshakeOptions{Keys: []string{"p256"}, Versions: []string{"1.3"}, Clients: 1, Workers: 1, Options: Options{Duration: 1, Pairs: 1}}
	for name, spoil := range map[string]func(*HandshakeOptions){
		"key": func(o *HandshakeOptions) { o.Keys = []string{"dsa"} }, "version": func(o *HandshakeOptions) { o.Versions = []string{"1.1"} },
		"clients": func(o *HandshakeOptions) { o.Clients = 0 }, "pairs": func(o *HandshakeOptions) { o.Pairs = 0 },
	} {
		o := good
		spoil(&o)
		if _, err := Handshakes(context.Background(), o); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if _, err := CryptoRPC(context.Background(), RPCOptions{Options: Options{Duration: 1, Pairs: 1, Rate: 1}, CardRate: 1, Inflight: []int{0}}); err == nil {
		t.Error("nothing in flight: taken")
	}
}

// The load counts what worked and what did not, and keeps to its rate.
func TestTLSLoad(t *testing.T) {
	ca, err := newAuthority(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := ca.server("p256", "127.0.0.1"); err != nil {
		t.Fatal(err)
	}
	cert, err := tls.LoadX509KeyPair(ca.dir+"/p256.crt", ca.dir+"/p256.key")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := x509.ParseCertificate(cert.Certificate[0]); err != nil {
		t.Fatal(err)
	}
	lis, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}})
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	go func() {
		for {
			c, err := lis.Accept()
			if err != nil {
				return
			}
			go func(c net.Conn) {
				_ = c.(*tls.Conn).Handshake() // the client tells
				_ = c.Close()
			}(c)
		}
	}()
	l := &TLSLoad{Addr: lis.Addr().String(), Roots: ca.dir + "/ca.crt", Version: "1.3", Clients: 4, Rate: 50, Duration: 300 * time.Millisecond}
	r, err := l.Run(t.Context())
	if err != nil || r.Handshakes < 1 || r.Handshakes > 19 || r.Failed != 0 || r.P50 <= 0 || r.P99 < r.P50 {
		t.Errorf("%+v, %v", r, err)
	}
	l.Addr = strings.Replace(l.Addr, "127.0.0.1", "127.0.0.2", 1) // not in the certificate, and nobody there
	if r, err = l.Run(t.Context()); err != nil || r.Handshakes != 0 || r.Failed == 0 || r.FirstError == "" {
		t.Errorf("%+v, %v", r, err)
	}
}

// Each way of the control carries a message and its answer, and computes as long as
// it is told.
func TestFloor(t *testing.T) {
	ca, err := newAuthority(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	files, err := ca.peer("peer", workerID+"peer")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range floorPaths {
		t.Run(path, func(t *testing.T) {
			at, ended := make(chan net.Addr, 1), make(chan error, 1)
			go func() { ended <- FloorPeer{Path: path, Files: files}.Run(func(a net.Addr) { at <- a }) }()
			c, err := dialFloor(t.Context(), path, (<-at).String(), files)
			if err != nil {
				t.Fatal(err)
			}
			b := &rpcBench{RPCOptions: RPCOptions{Options: Options{Rate: 200, Duration: 100 * time.Millisecond}}}
			const compute = 300 * time.Microsecond
			r, err := b.floor(t.Context(), path, c, compute)
			if err != nil {
				t.Fatal(err)
			}
			if r.Path != path || r.Rate != 200 || r.Compute < micros(compute) || r.P50 <= 0 || r.P99 < r.P50 {
				t.Errorf("%+v", r)
			}
			if err := c.Close(); err != nil {
				t.Error(err)
			}
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
	if err := (FloorPeer{Path: "pigeon"}).Run(func(net.Addr) {}); err == nil {
		t.Error("no such way: taken")
	}
}

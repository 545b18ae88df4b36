// SPDX-License-Identifier: Apache-2.0

package server

import (
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"testing"
	"time"

	"google.golang.org/grpc/credentials"

	"pno/crypto/acl"
	"pno/crypto/mtls"
	"pno/crypto/mtls/mtlstest"
)

// A look at the peers of thousands of streams verifies no certificate again, until
// the authorities change: then each connection's once.
func TestPeersAreCheap(t *testing.T) {
	const conns, each = 64, 32
	ca := mtlstest.NewAuthority(t)
	files := ca.Issue(t, "spiffe://pno.test/cryptod/a", time.Hour)
	id, err := mtls.Load(files)
	if err != nil {
		t.Fatal(err)
	}
	rules, err := acl.Parse("acl", []byte("rules: []\nrevoked: [\"serial:01\"]\n"))
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{cfg: Config{Identity: id, Log: slog.New(slog.DiscardHandler)}, metrics: newMetrics(id), streams: map[*stream]struct{}{}}
	s.rules.Store(rules)
	client := mtls.Files{Cert: files.Cert + ".c", Key: files.Key + ".c", CA: files.CA + ".c"}
	chain := []*x509.Certificate{ca.IssueInto(t, client, "spiffe://pno.test/proxy/1", time.Hour)}
	for range conns {
		p := &knownPeer{TLSInfo: credentials.TLSInfo{State: tls.ConnectionState{PeerCertificates: chain}}}
		for range each {
			s.streams[&stream{peer: p, dead: make(chan struct{})}] = struct{}{}
		}
	}
	first := testing.AllocsPerRun(1, func() { // it makes a run of its own before
		for st := range s.streams {
			st.peer.standing.Store(nil)
		}
		s.CheckPeers()
	})
	again := testing.AllocsPerRun(5, s.CheckPeers)
	t.Logf("%d streams: %.0f allocations when each connection is verified, %.0f when none is", conns*each, first, again)
	if again > 4*conns || first < again+20*conns || first > 200*conns {
		t.Error("want one verification a connection, then none")
	}
	alive := func() (n int) {
		for st := range s.streams {
			select {
			case <-st.dead:
			default:
				n++
			}
		}
		return n
	}
	if n := alive(); n != conns*each {
		t.Fatalf("%d streams live", n)
	}
	mtlstest.NewAuthority(t).IssueInto(t, files, "spiffe://pno.test/cryptod/a", time.Hour)
	if changed, err := id.Reload(); !changed || err != nil {
		t.Fatal(changed, err)
	}
	s.CheckPeers()
	if n := alive(); n != 0 {
		t.Errorf("%d streams live when their authority is gone", n)
	}
}

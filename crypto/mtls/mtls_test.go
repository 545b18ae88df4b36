// SPDX-License-Identifier: Apache-2.0

package mtls_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"strings"
	"testing"
	"time"

	"pno/crypto/mtls"
	"pno/crypto/mtls/mtlstest"
)

func load(t *testing.T, f mtls.Files) *mtls.Identity {
	t.Helper()
	id, err := mtls.Load(f)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// pair is a connection over loopback.
func pair(t *testing.T) (a, b net.Conn) {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	if b, err = net.Dial("tcp", lis.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if a, err = lis.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// handshake returns the errors of both sides.
func handshake(t *testing.T, server, client *mtls.Identity, pattern string) (errServer, errClient error) {
	t.Helper()
	a, b := pair(t)
	deadline := time.Now().Add(20 * time.Second)
	_, _ = a.SetDeadline(deadline), b.SetDeadline(deadline)
	done := make(chan error, 1)
	go func() {
		c, _, err := server.Server(func(net.Addr, error) {}).ServerHandshake(a)
		if err == nil {
			_, err = c.Write([]byte("x"))
		}
		a.Close()
		done <- err
	}()
	c, _, errClient := client.Client(pattern).ClientHandshake(context.Background(), "worker", b)
	if errClient == nil {
		_, errClient = c.Read(make([]byte, 1))
	}
	b.Close()
	return <-done, errClient
}

func TestHandshakes(t *testing.T) {
	ca, other := mtlstest.NewAuthority(t), mtlstest.NewAuthority(t)
	worker := load(t, ca.Issue(t, "spiffe://pno/cryptod/1", time.Hour))
	tests := []struct {
		name    string
		client  *mtls.Identity
		pattern string
		good    bool
	}{
		{"good", load(t, ca.Issue(t, "spiffe://pno/proxy/1", time.Hour)), "spiffe://pno/cryptod/*", true},
		{"another worker than meant", load(t, ca.Issue(t, "spiffe://pno/proxy/1", time.Hour)), "spiffe://pno/cryptod/2", false},
		{"expired", load(t, ca.Issue(t, "spiffe://pno/proxy/1", -time.Minute)), "spiffe://pno/cryptod/*", false},
		{"foreign", load(t, other.Issue(t, "spiffe://pno/proxy/1", time.Hour)), "spiffe://pno/cryptod/*", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			errServer, errClient := handshake(t, worker, tt.client, tt.pattern)
			if good := errServer == nil && errClient == nil; good != tt.good {
				t.Errorf("server: %v; client: %v", errServer, errClient)
			}
		})
	}
	if _, err := mtls.Load(ca.Issue(t, "", time.Hour)); err == nil {
		t.Error("a certificate without a URI was loaded")
	}
	// No URI may say two things.
	for uri, good := range map[string]bool{"spiffe://pno/proxy/../admin": false, "spiffe://pno/proxy/%2e%2E/admin": false, "spiffe://pno/./proxy": false,
		"spiffe://pno/proxy/..1": true, "spiffe://pno/proxy": true} {
		if _, err := mtls.Load(ca.Issue(t, uri, time.Hour)); (err == nil) != good {
			t.Errorf("%s: %v", uri, err)
		}
	}
}

func TestOnly13(t *testing.T) {
	ca := mtlstest.NewAuthority(t)
	worker := load(t, ca.Issue(t, "spiffe://pno/cryptod/1", time.Hour))
	files := ca.Issue(t, "spiffe://pno/proxy/1", time.Hour)
	cert, err := tls.LoadX509KeyPair(files.Cert, files.Key)
	if err != nil {
		t.Fatal(err)
	}
	a, b := pair(t)
	go func() {
		_, _, _ = worker.Server(func(net.Addr, error) {}).ServerHandshake(a)
		a.Close()
	}()
	c := tls.Client(b, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{cert}, MaxVersion: tls.VersionTLS12})
	if err := c.Handshake(); err == nil {
		t.Error("TLS 1.2 was accepted")
	}
	b.Close()
}

func TestReload(t *testing.T) {
	ca, other := mtlstest.NewAuthority(t), mtlstest.NewAuthority(t)
	files := ca.Issue(t, "spiffe://pno/cryptod/1", time.Hour)
	worker := load(t, files)
	if changed, err := worker.Reload(); changed || err != nil {
		t.Errorf("nothing happened, but: %v, %v", changed, err)
	}
	client := load(t, other.Issue(t, "spiffe://pno/proxy/1", time.Hour))
	if errServer, _ := handshake(t, worker, client, "spiffe://pno/cryptod/*"); errServer == nil {
		t.Error("a foreign client was let in")
	}
	other.IssueInto(t, files, "spiffe://pno/cryptod/9", time.Hour)
	if changed, err := worker.Reload(); !changed || err != nil {
		t.Fatalf("%v, %v", changed, err)
	}
	if errServer, errClient := handshake(t, worker, client, "spiffe://pno/cryptod/9"); errServer != nil || errClient != nil {
		t.Errorf("server: %v; client: %v", errServer, errClient)
	}
}

func TestUsable(t *testing.T) {
	id := load(t, mtlstest.NewAuthority(t).Issue(t, "spiffe://pno/cryptod/1", time.Hour))
	for after, want := range map[time.Duration]string{0: "", 2 * time.Hour: "expired at", -2 * time.Hour: "not good before"} {
		if err := id.Usable(time.Now().Add(after)); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("in %v: %v", after, err)
		}
	}
}

// What was found out about a peer holds until a certificate of its chain expires,
// or the authorities are others.
func TestStanding(t *testing.T) {
	ca := mtlstest.NewAuthority(t)
	files := ca.Issue(t, "spiffe://pno/cryptod/1", time.Hour)
	worker := load(t, files)
	client := mtls.Files{Cert: files.Cert + ".c", Key: files.Key + ".c", CA: files.CA + ".c"}
	leaf := ca.IssueInto(t, client, "spiffe://pno/proxy/1", time.Minute)
	s, err := worker.Stand([]*x509.Certificate{leaf}, x509.ExtKeyUsageClientAuth)
	if err != nil || s.URI != "spiffe://pno/proxy/1" {
		t.Fatalf("%+v, %v", s, err)
	}
	if worker.Holds(mtls.Standing{}, time.Now()) {
		t.Error("nothing holds")
	}
	if !worker.Holds(s, time.Now()) || !worker.Holds(s, leaf.NotAfter) || worker.Holds(s, leaf.NotAfter.Add(time.Second)) {
		t.Error("does not hold until the certificate expires")
	}
	mtlstest.NewAuthority(t).IssueInto(t, files, "spiffe://pno/cryptod/1", time.Hour)
	if changed, err := worker.Reload(); !changed || err != nil {
		t.Fatal(changed, err)
	}
	if worker.Holds(s, time.Now()) {
		t.Error("holds for other authorities")
	}
}

// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"context"
	"fmt"
	"net"
	"testing"
	"time"

	"pno/crypto/cryptotest"
	"pno/crypto/server"
	cryptov1 "pno/proto/pno/crypto/v1"
)

// strangers connects n times from an address of this host and says nothing.
func strangers(t *testing.T, w *cryptotest.Worker, from string, n int) []net.Conn {
	t.Helper()
	var all []net.Conn
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	for range n {
		raw, err := d.Dial("tcp", w.Addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { raw.Close() })
		all = append(all, raw)
	}
	return all
}

// closedBy tells whether the worker closes a connection before the deadline.
func closedBy(raw net.Conn, deadline time.Time) bool {
	_ = raw.SetReadDeadline(deadline)
	_, err := raw.Read(make([]byte, 1))
	timeout, ok := err.(net.Error)
	return err != nil && (!ok || !timeout.Timeout())
}

// Strangers that have all the places for strangers, from one address or many, keep
// no client out: the oldest of whoever has most goes for a new one.
func TestStrangersMakeRoom(t *testing.T) {
	for _, addresses := range []int{1, 4, 64} {
		t.Run(fmt.Sprint(addresses), func(t *testing.T) {
			c := cryptotest.New(t, 0, cryptotest.AllowAll, "P-256")
			w := c.StartTuned(t, "a", cryptotest.AllowAll, "", func(cfg *server.Config) {
				cfg.Limits = server.Limits{Connections: 256}
			}, cryptotest.Software)
			start := time.Now()
			for a := range addresses {
				strangers(t, w, fmt.Sprintf("127.0.1.%d", a+1), max(1, min(64/addresses, 16)))
			}
			for range 3 { // connections of their own
				ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
				s, err := cryptov1.NewCryptoServiceClient(dial(t, w, cryptotest.Identity(t, c.CA, cryptotest.ProxyURI))).Operate(ctx)
				if err == nil {
					_, err = s.Recv()
				}
				cancel()
				if err != nil {
					t.Errorf("a client with a good certificate, after %v: %v", time.Since(start), err)
				}
			}
		})
	}
}

// An address that has many connections loses its own first.
func TestStrangersOfOthersStay(t *testing.T) {
	c := cryptotest.New(t, 0, cryptotest.AllowAll, "P-256")
	w := c.StartTuned(t, "a", cryptotest.AllowAll, "", func(cfg *server.Config) {
		cfg.Limits = server.Limits{Connections: 256}
	}, cryptotest.Software)
	start := time.Now()
	first := strangers(t, w, "127.0.2.1", 1)[0]
	var many [][]net.Conn
	for a := range 4 {
		many = append(many, strangers(t, w, fmt.Sprintf("127.0.1.%d", a+1), 20))
	}
	for _, of := range many {
		for i := range 4 {
			if !closedBy(of[i], start.Add(8*time.Second)) {
				t.Errorf("connection %d of an address that has 20 is open", i+1)
			}
		}
	}
	if closedBy(first, time.Now().Add(100*time.Millisecond)) && time.Since(start) < 8*time.Second {
		t.Error("the oldest of all is closed, though its address has no other")
	}
}

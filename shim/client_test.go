// SPDX-License-Identifier: Apache-2.0

package shim_test

import (
	"fmt"
	"net"
	"testing"

	"golang.org/x/net/nettest"
)

// TestConn is the conformance test of package net's connections.
func TestConn(t *testing.T) {
	for _, shards := range []int{1, 3} {
		t.Run(fmt.Sprint(shards, "shards"), func(t *testing.T) {
			startSim(t, shards)
			nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
				a, b := pair(t)
				return a, b, func() { _ = a.Close(); _ = b.Close() }, nil
			})
		})
	}
}

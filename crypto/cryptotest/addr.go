// SPDX-License-Identifier: Apache-2.0

package cryptotest

import (
	"net"
	"testing"
)

// FreeAddr is an address of loopback that nobody listened at a moment ago.
func FreeAddr(t testing.TB) string {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	return lis.Addr().String()
}

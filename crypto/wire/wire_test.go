// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"testing"
	"time"
)

// A client that pings as it is set to must never be told to go away, also when its
// pings come early by the network's doing; and gRPC raises less than 10 s to that
// on a client without a word.
func TestKeepaliveAgrees(t *testing.T) {
	if ClientPing < 2*PermittedPing {
		t.Errorf("clients ping every %v, which must be well above the %v that workers permit", ClientPing, PermittedPing)
	}
	if ClientPing < 10*time.Second {
		t.Errorf("clients ping every %v; gRPC makes 10s of that", ClientPing)
	}
	if ServerPing < time.Second || ClientTimeout >= ClientPing || ServerTimeout >= ServerPing {
		t.Errorf("timeouts of %v and %v for pings every %v and %v", ClientTimeout, ServerTimeout, ClientPing, ServerPing)
	}
}

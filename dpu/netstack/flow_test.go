// SPDX-License-Identifier: Apache-2.0

package netstack

import "testing"

// Connections that have left are forgotten in time, and never one that has
// their addresses now.
func TestFlowsForgetWhoLeft(t *testing.T) {
	fs := &flows{table: make(map[flowKey]*flow)}
	leave := func(port uint16, until int64) *flow {
		f := &flow{left: true, key: flowKey{peerPort: port}}
		fs.table[f.key] = f
		fs.left = append(fs.left, leaving{f, until})
		return f
	}
	for port := range uint16(1000) {
		leave(port, int64(port))
	}
	next := &flow{}
	fs.table[flowKey{peerPort: 3}] = next

	fs.forget(400)
	if n := len(fs.left); n != 1000 {
		t.Errorf("%d of 1000 are left in line when less than half are due", n)
	}
	fs.forget(599)
	if len(fs.left) != 400 || len(fs.table) != 401 {
		t.Errorf("%d in line and %d in the table after 600 of 1000 were due", len(fs.left), len(fs.table))
	}
	fs.forget(5000)
	if len(fs.left) != 0 || len(fs.table) != 1 || fs.table[flowKey{peerPort: 3}] != next {
		t.Errorf("%d in line and %d in the table after all were due", len(fs.left), len(fs.table))
	}
	one := leave(7, 6000)
	fs.forget(5999)
	if fs.table[flowKey{peerPort: 7}] != one {
		t.Error("one was forgotten too soon")
	}
	fs.forget(6000)
	if len(fs.left) != 0 || len(fs.table) != 1 {
		t.Error("one was not forgotten")
	}
}

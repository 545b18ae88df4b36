// SPDX-License-Identifier: Apache-2.0

package netstack

import (
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// Connections that have left are forgotten in time, and never one that has
// their addresses now.
func TestFlowsForgetWhoLeft(t *testing.T) {
	alive := accepted(t).ep.(*tcp.Endpoint)
	fs := &flows{table: make(map[flowKey]*flow)}
	leave := func(port uint16, until int64) *flow {
		f := &flow{ep: alive, left: true, key: flowKey{peerPort: port}}
		fs.table[f.key] = f
		fs.left = append(fs.left, leaving{f, until})
		return f
	}
	for port := range uint16(1000) {
		leave(port, int64(port)*lookDelay)
	}
	next := &flow{}
	fs.table[flowKey{peerPort: 3}] = next

	fs.forget(599 * lookDelay)
	if len(fs.left) != 400 || len(fs.table) != 401 {
		t.Errorf("%d in line and %d in the table after 600 of 1000 were due", len(fs.left), len(fs.table))
	}
	fs.forget(600*lookDelay - 1)
	fs.forget(5000 * lookDelay)
	if len(fs.left) != 0 || len(fs.table) != 1 || fs.table[flowKey{peerPort: 3}] != next {
		t.Errorf("%d in line and %d in the table after all were due", len(fs.left), len(fs.table))
	}
	one := leave(7, 6000*lookDelay)
	fs.forget(6000*lookDelay - 1)
	if fs.table[flowKey{peerPort: 7}] != one {
		t.Error("one was forgotten too soon")
	}
	fs.forget(6001 * lookDelay)
	if len(fs.left) != 0 || len(fs.table) != 1 {
		t.Error("one was not forgotten")
	}
}

// A connection that is over must not stay in memory for as long as one that is
// not might be of use: thousands of them end in a second.
func TestFlowsForgetWhoIsOver(t *testing.T) {
	for _, c := range []struct {
		name string
		last header.TCPFlags // the peer's, after both have sent their FIN
		ends tcp.EndpointState
	}{
		{"in order", ack, tcp.StateClose},
		{"by a reset", rst | ack, tcp.StateError},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := accepted(t)
			fs, ep := d.s.flows, d.ep.(*tcp.Endpoint)
			d.port.Deliver(d.frame(ack|fin, peerNext, nil))
			d.until("the peer has closed", func() bool { return ep.EndpointState() == tcp.StateCloseWait })
			d.s.Leave(d.ep)
			fs.left[0].until = d.now + 1000*leaveDelay // however long this takes
			d.ep.Close()
			d.answer(func(h header.TCP) bool { return h.Flags()&fin != 0 })
			d.tick(2 * lookDelay)
			if len(fs.left) != 1 || fs.table[waitingOne] == nil {
				t.Error("a connection that is not over was forgotten")
			}
			d.sequence++
			d.port.Deliver(d.frame(c.last, peerNext+1, nil))
			d.until("the connection is over", func() bool { return ep.EndpointState() == c.ends })
			d.tick(lookDelay)
			if len(fs.left) != 0 || fs.table[waitingOne] != nil {
				t.Errorf("%d in line, %d in the table", len(fs.left), len(fs.table))
			}
		})
	}
}

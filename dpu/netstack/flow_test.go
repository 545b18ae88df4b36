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

// One that will be a record in TIME-WAIT is known until then: each is looked at once
// in leaveDelay, and those that are over do not stay.
func TestFlowsKeepWhoIsLate(t *testing.T) {
	alive := accepted(t).ep.(*tcp.Endpoint)
	fs := &flows{table: make(map[flowKey]*flow)}
	const all = 1000
	for port := range uint16(all) {
		f := &flow{ep: alive, left: true, accepted: true, key: flowKey{peerPort: port}}
		fs.table[f.key] = f
		fs.left = append(fs.left, leaving{f, leaveDelay})
	}
	for now := int64(0); now < 5*leaveDelay; now += lookDelay {
		fs.forget(now)
	}
	if len(fs.left) != 0 || len(fs.last) != all || len(fs.table) != all {
		t.Errorf("%d and %d in line and %d in the table, of %d", len(fs.left), len(fs.last), len(fs.table), all)
	}
	for _, f := range fs.table {
		if f.key.peerPort%3 == 0 {
			f.ep = nil
		}
	}
	for now := 5 * leaveDelay; now < 7*leaveDelay; now += lookDelay {
		fs.forget(now)
	}
	if want := all - (all+2)/3; len(fs.last) != want || len(fs.table) != want {
		t.Errorf("%d in line and %d in the table, want %d", len(fs.last), len(fs.table), want)
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

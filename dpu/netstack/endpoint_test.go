// SPDX-License-Identifier: Apache-2.0

package netstack

import (
	"testing"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// narrow is a device with room for a few frames until it is flushed.
type narrow struct {
	room int
	buf  [64]byte
	sent []byte // the first byte of each frame
}

func (d *narrow) TxAlloc() []byte {
	if d.room == 0 {
		return nil
	}
	return d.buf[:]
}

func (d *narrow) TxCommit(int) {
	d.room--
	d.sent = append(d.sent, d.buf[0])
}

// Packets wait for a device that is full: none is dropped, none overtakes.
func TestPacketsWaitForAFullLink(t *testing.T) {
	const packets = 100
	e := NewEndpoint([6]byte{2}, 1500, func() {})
	d := &narrow{}
	for i := range packets {
		p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData([]byte{byte(i), 1, 2})})
		var list stack.PacketBufferList
		list.PushBack(p)
		if n, err := e.WritePackets(list); n != 1 || err != nil {
			t.Fatalf("packet %d: %d, %v", i, n, err)
		}
		list.Reset()
		if i%9 == 0 {
			d.room = 3
			e.Drain(d)
		}
	}
	for e.Waiting() {
		d.room = 7
		e.Drain(d)
	}
	if len(d.sent) != packets {
		t.Fatalf("%d packets sent, want %d", len(d.sent), packets)
	}
	for i, b := range d.sent {
		if int(b) != i {
			t.Fatalf("packet %d overtook packet %d", b, i)
		}
	}
	if waits, peak, refused := e.Held(); waits == 0 || peak == 0 || refused != 0 {
		t.Errorf("waits %d, peak %d, refused %d", waits, peak, refused)
	}
}

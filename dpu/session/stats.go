// SPDX-License-Identifier: Apache-2.0

package session

import "pno/offload"

// counters are a shard's or a session's running totals. The loop is the only
// writer and reader; snapshots are taken by the loop.
type counters struct {
	bytesRx, bytesTx       uint64
	spliced                uint64 // bytes that went from one socket to another here
	recordsH2D, recordsD2H uint64
	interrupts, moderated  uint64
	doorbells              uint64
	unknown                uint64
	ringFull               uint64
	dmaReads, dmaWrites    uint64
	dmaReadBytes           uint64
	dmaWriteBytes          uint64

	// Of the shard only.
	sockets       int
	accepted      uint64
	connected     uint64
	connectFailed uint64
	closed        uint64
	resets        uint64
	handedOver    uint64
	redirects     uint64
	violations    uint64
	dgramsTooLong uint64
	dgramsUnsent  uint64
}

// dma counts what passes a transport.
type dma struct {
	offload.Transport
	c                     *counters // of the shard
	reads, writes         uint64
	readBytes, writeBytes uint64
}

// Post implements offload.Transport.
func (d *dma) Post(ops ...*offload.DMA) error {
	for _, op := range ops {
		n := uint64(len(op.Buf))
		if op.Kind == offload.DMARead {
			d.reads++
			d.readBytes += n
			d.c.dmaReads++
			d.c.dmaReadBytes += n
		} else {
			d.writes++
			d.writeBytes += n
			d.c.dmaWrites++
			d.c.dmaWriteBytes += n
		}
	}
	return d.Transport.Post(ops...)
}

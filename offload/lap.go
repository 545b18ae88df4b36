// SPDX-License-Identifier: Apache-2.0

package offload

// A ring's memory becomes resident as it is gone round for the first time, and
// what was touched last is in the caches. So a producer need not go round all of
// it: where the consumer has caught up it may pad the ring to its end and begin
// the next lap, of which light use then never sees more than EarlyLap.
//
// Until the consumer is behind the padding, there is only the room before it. A
// producer that wanted more in that time goes twice as far from then on, which
// ends with the whole ring.
//
// A producer looks whether a lap is over once in LapStep bytes, or where it is
// told of the consumer's position anyway.

// lap is what a producer knows of its way round the ring.
type lap struct {
	least uint64 // room that has to be left when one ends early
	began uint64 // where the last one did, until the consumer was found before it
}

// over tells whether the lap may end at prod.
func (l *lap) over(size, prod, cons uint64) bool {
	return prod&(size-1) >= l.least+(prod-cons)
}

// begins notes that a lap begins at pos.
func (l *lap) begins(pos uint64) { l.began = pos }

// short is told that something finds no room.
func (l *lap) short(cons uint64) {
	if cons < l.began {
		l.began = 0
		l.least = min(2*l.least, MaxRingSize)
	}
}

// pad is padding.
type pad struct{ from, to uint64 }

func (p pad) size() uint64 { return p.to - p.from }

// SPDX-License-Identifier: Apache-2.0

package netstack

// waitLine holds the records of connections in TIME-WAIT in the order in which
// they end, which is that of their coming: they all wait equally long. It is a
// list in pages, linked by places, so that there is no pointer for the collector
// to follow and no copying as it grows.
type waitLine struct {
	pages []*[waitPage]waitRecord
	free  place // the first of those not in use, linked by next
}

// place names a record. The list is a ring through the record at place 0, which
// is nobody's.
type place int32

const waitPage = 1 << 10

type waitRecord struct {
	timeWait
	key        flowKey
	next, prev place
}

func (l *waitLine) at(p place) *waitRecord { return &l.pages[p/waitPage][p%waitPage] }

// add appends a record.
func (l *waitLine) add(k flowKey, w timeWait) place {
	if l.free == 0 {
		l.grow()
	}
	p := l.free
	r := l.at(p)
	l.free = r.next
	r.timeWait, r.key = w, k
	l.link(p)
	return p
}

// grow makes a page of free places, all but the ring's.
func (l *waitLine) grow() {
	first := place(len(l.pages) * waitPage)
	l.pages = append(l.pages, new([waitPage]waitRecord))
	for p := first + waitPage - 1; p >= max(first, 1); p-- {
		l.at(p).next, l.free = l.free, p
	}
}

func (l *waitLine) remove(p place) {
	l.unlink(p)
	l.at(p).next, l.free = l.free, p
}

// toEnd has a record wait behind all others.
func (l *waitLine) toEnd(p place) {
	l.unlink(p)
	l.link(p)
}

// oldest returns the first one in line, if there is one.
func (l *waitLine) oldest() (until int64, k flowKey, ok bool) {
	if len(l.pages) == 0 || l.at(0).next == 0 {
		return 0, flowKey{}, false
	}
	r := l.at(l.at(0).next)
	return r.until, r.key, true
}

func (l *waitLine) link(p place) {
	r, ring := l.at(p), l.at(0)
	r.next, r.prev = 0, ring.prev
	l.at(ring.prev).next, ring.prev = p, p
}

func (l *waitLine) unlink(p place) {
	r := l.at(p)
	l.at(r.prev).next, l.at(r.next).prev = r.next, r.prev
}

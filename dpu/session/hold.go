// SPDX-License-Identifier: Apache-2.0

package session

import (
	"io"

	"gvisor.dev/gvisor/pkg/tcpip"

	"pno/offload"
)

// A program that moves bytes from one socket to another through a pipe does
// not look at them, so they need not cross to the host. Of a socket on hold the
// received bytes are kept here and only their number is told (Held). Move then
// sends a part of them on another socket of the session. Everything else that
// the host may want ends the hold first, after which what is kept is sent like
// any retained data.
//
// The stream offsets of a socket on hold: what lies before sent is the host's or
// was moved, keep spans from sent to end, and told is how far the host knows of
// it.

// keep is what a socket on hold has.
type keep struct {
	generation uint8 // of the Hold
	b          backlog
	told       uint64

	since  int64 // since when there is something to tell, 0 if there is nothing
	first  int64 // when this message began
	last   int64 // when something last came
	size   int   // how much has come of it
	before int   // how much the message before was
	over   bool  // what comes next begins another: the host has sent something
}

// A host that is woken for each segment saves nothing. A message is what comes
// until the host sends something the other way, or nothing comes for restAfter.
// What is large is told when half of a window has gathered, when nothing more
// came for half as long as the message has lasted, or gatherMost after the first
// of it. Whenever a queue pair's host is told of one socket it is told of the
// others that have something worth the calls.
//
// Of bulk, a pause says nothing: the others have their turn, or the sender has a
// small window. The host is told every tellEvery, or when all of its sockets are
// silent, but of a message that may still turn out small, firstEvery.
//
// Where a crowd of sockets shares the wire, each gets its bytes that much more
// slowly, and what waits on the DPU keeps the wire busy. There the host is told
// every crowdEvery after the first of it, or of three quarters of a window.
const (
	largeSize  = 16 << 10
	bulkSize   = 128 << 10
	restAfter  = 50e6
	leastQuiet = 50e3
	mostQuiet  = 1e6
	firstEvery = 2e6
	tellEvery  = 8e6
	gatherMost = 10e6

	crowd       = 6 // sockets told of at a time
	companyMost = 8 // which that many tells of one forget
	crowdEvery  = 16e6
	crowdMost   = 18e6
)

// A host that has just been woken for bulk answers within answerWithin. Until then
// the loop looks every answerPoll instead of asking for the doorbell, which is a
// write over the bus, or a system call, on the side that is to do nothing.
const (
	answerWithin = 500e3
	answerPoll   = 100e3
)

// heldMax bounds what a shard keeps: beyond it, a socket's window is what it
// would be without a hold.
const heldMax = 64 << 20

// holdWindow is how much a socket on hold may have.
func (t *Table) holdWindow(s *socket) uint64 {
	if s.at.rxLimit != 0 || t.held > heldMax {
		return s.at.rxWindow()
	}
	return offload.MoveWindow
}

// end is the rx offset up to which the stack was read.
func (s *socket) end() uint64 {
	if s.keep != nil {
		return s.sent + uint64(s.keep.b.len())
	}
	return s.retainOff + uint64(len(s.retain))
}

// onHold is how many bytes are kept.
func (s *socket) onHold() int {
	if s.keep == nil {
		return 0
	}
	return s.keep.b.len()
}

// ahead tells whether the host counts as consumed what a Move still has to
// send, which then lies in another channel's ring.
func (s *socket) ahead(ack uint32) bool {
	d := int32(ack - uint32(s.sent))
	return d > 0 && s.sent+uint64(d) <= s.keep.told
}

// mayBeAhead are the operations whose Ack counts consumed bytes.
func mayBeAhead(op offload.Op) bool {
	switch op {
	case offload.OpSend, offload.OpRxAck, offload.OpShutdown, offload.OpClose, offload.OpShared, offload.OpHold, offload.OpMove:
		return true
	}
	return false
}

// setHold handles Hold.
func (t *Table) setHold(h *hold, rec offload.Record) (bad string) {
	s := h.sock
	switch {
	case s.u != nil || s.l != nil:
		return "hold of what is no connection"
	case rec.Flags > offload.FlagHoldOn:
		return "hold of unknown kind"
	case !t.consume(s, rec.Ack):
		return "consumed more than was sent"
	}
	if rec.Flags == 0 {
		t.letGo(s)
		return ""
	}
	// A connection that others have, too, that is over, or that nobody has
	// accepted goes on as it was: the host takes Data as well.
	if s.kind != connected || s.at != h || len(s.holds) != 1 || s.from != nil || s.discard {
		return ""
	}
	if s.keep == nil {
		s.keep = &keep{}
		t.put(&s.keep.b, s.retain[len(s.retain)-s.retained():])
		t.held += s.onHold()
		s.retain, s.retainOff = nil, s.sent
	}
	s.keep.generation, s.keep.told = uint8(rec.Seq), s.sent
	t.pull(s)
	return ""
}

// letGo has the host sent what is on hold.
func (t *Table) letGo(s *socket) {
	if s.keep == nil {
		return
	}
	s.retain, s.retainOff = make([]byte, s.onHold()), s.sent
	_, _ = (&source{b: &s.keep.b}).Read(s.retain)
	t.drop(s)
	t.later(s)
}

// drop forgets what is on hold.
func (t *Table) drop(s *socket) {
	if s.keep != nil {
		t.held -= s.onHold()
		t.clear(&s.keep.b)
		s.keep = nil
	}
}

// keeper is what an endpoint's Read writes to.
type keeper struct {
	t    *Table
	b    *backlog
	room int
	n    int
}

func (k *keeper) Write(p []byte) (int, error) {
	n := min(len(p), k.room-k.n)
	k.t.put(k.b, p[:n])
	k.n += n
	if n < len(p) {
		return n, io.ErrShortWrite
	}
	return n, nil
}

// gather reads what the stack has for a socket on hold, and tells the host.
func (t *Table) gather(s *socket, q *queue) {
	k := s.keep
	limit := s.consumed + t.holdWindow(s)
	for !s.eof && s.end() < limit {
		t.kept = keeper{t: t, b: &k.b, room: int(limit - s.end())}
		_, err := s.ep.Read(&t.kept, tcpip.ReadOptions{})
		got := t.kept.n
		t.kept = keeper{}
		t.held += got
		s.read(got)
		if err != nil {
			t.readError(s, err)
		}
		if got == 0 {
			break
		}
		k.came(t.now, got)
		q.cameAt = t.now
	}
	if t.tellHeld(s, q) {
		t.finish(s, q)
	}
}

// tellHeld tells the host how much is on hold, and reports whether it could.
func (t *Table) tellHeld(s *socket, q *queue) bool {
	k := s.keep
	untold := s.end() - k.told
	if untold == 0 {
		return true
	}
	if k.large() && !s.eof && untold < q.enoughHeld(t.holdWindow(s)) && !t.overdue(s, q) {
		return false
	}
	if len(q.overflow) > 0 || q.qp.Emit(offload.OpHeld, k.generation, s.at.handle, uint32(s.end()), t.ack(s.at), 0) == nil {
		t.wait(q, s)
		return false
	}
	t.emitted(q)
	k.told, k.since = s.end(), 0
	q.tells(t.now)
	return true
}

// tells notes that the host is told of another socket.
func (q *queue) tells(now int64) {
	if !q.telling {
		q.company, q.told = q.company-1, 0
	}
	q.told++
	q.company = min(max(q.company, q.told), companyMost)
	q.telling, q.toldAt = true, now
}

// crowded tells whether the host has lately been told of many sockets at a time.
func (q *queue) crowded() bool { return q.company >= crowd }

// enoughHeld is how much of one socket, of this window, the host is told at once.
func (q *queue) enoughHeld(window uint64) uint64 {
	if q.crowded() {
		return window / 4 * 3
	}
	return window / 2
}

// answers tells whether a host that is told of what is on hold has just been
// woken. The loop looks soon, so that it need not ring.
func (q *queue) answers(now int64) bool {
	return q.toldAt > 0 && now-q.toldAt < restAfter && now-q.lastIntr < answerWithin
}

// answerIn is when the loop looks for such an answer: no later than the transport
// or an interrupt that was put off needs it.
func (q *queue) answerIn(t *Table) int64 {
	in := int64(answerPoll)
	if q.due {
		in = min(in, q.dueIn(t))
	}
	if d := q.s.t.Poll(); d > 0 {
		in = min(in, d)
	}
	if q.s.t.DoorbellFD() < 0 {
		in = min(in, blindPoll)
	}
	return in
}

// overdue tells whether s has gathered for long enough, and else has it looked
// at in time.
func (t *Table) overdue(s *socket, q *queue) bool {
	k := s.keep
	if k.since == 0 {
		k.since = t.now
	}
	t.list(s)
	return t.now >= s.due() || q.telling && s.worthTelling()
}

// came notes that n bytes have come.
func (k *keep) came(now int64, n int) {
	if k.over || now-k.last > restAfter {
		k.over, k.before, k.size, k.first = false, k.size, 0, now
	}
	k.last = now
	k.size += n
}

// large tells whether this message or the one before is.
func (k *keep) large() bool { return max(k.size, k.before) >= largeSize }

// quiet is after which time without more what began and last came at these times
// is taken to be all for now.
func quiet(first, last int64) int64 { return min(max((last-first)/2, leastQuiet), mostQuiet) }

// due is when the host is to be told of what s has gathered.
func (s *socket) due() int64 {
	k, q := s.keep, s.home
	at, most := k.last+quiet(k.first, k.last), int64(gatherMost)
	if max(k.size, k.before) >= bulkSize {
		every, from := int64(tellEvery), q.toldAt
		switch {
		case q.crowded() && k.size >= largeSize:
			every, most = crowdEvery, crowdMost
		case k.size < bulkSize:
			every = firstEvery
		}
		if q.crowded() {
			from = max(from, k.since)
		}
		at = max(at, min(from+every, q.cameAt+quiet(k.first, q.cameAt)))
	}
	return min(at, k.since+most)
}

// worthTelling tells whether there is enough to tell for a host that is awake
// anyway: it costs a proxy a few calls.
func (s *socket) worthTelling() bool { return s.end()-s.keep.told >= largeSize }

// list has s looked at by tellAll.
func (t *Table) list(s *socket) {
	if !s.untold {
		s.untold = true
		t.untold = append(t.untold, s)
	}
}

// tellAll tells of what has waited for long enough, and of what can go along
// because the host hears of something anyway.
func (t *Table) tellAll() {
	for again := true; again; {
		again = false
		kept := t.untold[:0]
		for _, s := range t.untold {
			if q := s.home; q != nil {
				was := q.telling
				if s.gathers() && (was && s.worthTelling() || t.now >= s.due()) {
					t.service(s)
				}
				again = again || !was && q.telling
			}
			s.untold = s.tellIn(t.now) >= 0
			if s.untold {
				kept = append(kept, s)
			}
		}
		clear(t.untold[len(kept):])
		t.untold = kept
	}
}

// gathers tells whether there is something on hold that the host has not been
// told yet.
func (s *socket) gathers() bool { return s.keep != nil && s.keep.since != 0 }

// tellIn is when tellAll has something to do for s, -1 if never.
func (s *socket) tellIn(now int64) int64 {
	if s.home == nil || s.kind == dead || !s.gathers() {
		return -1
	}
	return max(s.due()-now, 1)
}

// tellIn is when tellAll has something to do, -1 if never.
func (t *Table) tellIn() (d int64) {
	d = -1
	for _, s := range t.untold {
		if left := s.tellIn(t.now); left > 0 && (d < 0 || left < d) {
			d = left
		}
	}
	return d
}

// move handles Move: what another socket holds is sent on h's.
func (t *Table) move(q *queue, h *hold, rec offload.Record, payload []byte) (ok bool, bad string) {
	m, err := offload.GetMoveReq(payload)
	if err != nil {
		return true, "short move"
	}
	from := q.s.handles.get(m.From)
	if from == nil || from.sock.at != from || from.sock.keep == nil {
		return true, "move from a socket that holds nothing"
	}
	a, n := from.sock, uint64(m.Len)
	gap := int32(m.Off - uint32(a.sent))
	switch {
	case h.sock.u != nil:
		return true, "stream data for a datagram socket"
	case gap < 0 || a.sent+uint64(gap)+n > a.keep.told:
		return true, "move of what is not held"
	case n == 0:
		return true, "move of nothing"
	case gap > 0:
		return false, "" // what comes before it is moved by another ring
	}
	if ok, bad := t.expect(h, rec, n, h.moveWindow()); !ok || bad != "" {
		return ok, bad
	}
	t.relay(h, a, int(n))
	a.consumed = max(a.consumed, a.sent)
	t.stats.spliced += n
	q.s.stats.spliced += n
	t.later(a) // there is room for more, and something to tell
	return true, ""
}

// moveWindow is how much may be under way on h's connection with Moves.
func (h *hold) moveWindow() uint64 {
	if h.txLimit != 0 {
		return h.txWindow()
	}
	return max(offload.MoveWindow, uint64(h.s.l.TxWindow))
}

// creditMoved is credit for who has Moves under way, and waits for none as long
// as there is window left: half of it goes along with what the host is told next.
// Of less, what comes for the host on this connection tells: the next request.
func (t *Table) creditMoved(h *hold) {
	s, window := h.sock, h.moveWindow()
	open := h.txSeq - h.txAcked
	free := open - min(open, uint64(s.pend.len()))
	// To the host a connection is writable as long as a quarter of TxWindow is left.
	short := window - max(window/8, h.txWindow()/4)
	switch {
	case free < window/2:
	case open > short:
		t.acknowledge(h)
	case s.unacked == 0:
		q := s.home
		q.unacked = append(q.unacked, s)
		s.unacked = len(q.unacked)
	}
}

// leaveUnacked takes s, which leaves its home, off the list there.
func (s *socket) leaveUnacked() {
	if s.unacked == 0 {
		return
	}
	list := s.home.unacked
	last := len(list) - 1
	other := list[last]
	list[s.unacked-1], other.unacked = other, s.unacked
	list[last], s.unacked = nil, 0
	s.home.unacked = list[:last]
}

// ackMoved acknowledges what has been moved and waits for company.
func (t *Table) ackMoved(q *queue) {
	for _, s := range q.unacked {
		s.unacked = 0
		if s.at.moved > s.at.txAcked {
			t.acknowledge(s.at)
		}
	}
	clear(q.unacked)
	q.unacked = q.unacked[:0]
}

// relay sends the first n bytes of what a holds on h's connection.
func (t *Table) relay(h *hold, a *socket, n int) {
	s := h.sock
	h.txSeq += uint64(n)
	h.moved = h.txSeq
	a.sent += uint64(n)
	a.retainOff = a.sent
	t.held -= n
	if s.kind != connected || s.shut {
		t.take(&a.keep.b, n)
		h.txAcked = h.txSeq
		return
	}
	s.txBytes += uint64(n)
	s.cork = false
	t.shift(&s.pend, &a.keep.b, n)
	t.write(s, nil)
	t.corkedWrite(s)
	if s.kind == connected {
		t.credit(h)
	}
}

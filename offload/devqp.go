// SPDX-License-Identifier: Apache-2.0

package offload

import "fmt"

// Bytes of the control lines that carry fields; the rest is reserved.
const (
	hostLineBytes = 40
	devLineBytes  = 24
)

// DevQP is the DPU's end of one queue pair. It keeps a mirror of each ring in
// DPU memory, so that records are parsed and built at their ring offsets and
// a batch moves with one or two DMA operations.
//
// One goroutine owns it. Nothing blocks: Pump advances the reads, Next hands
// out validated records, Reserve/Commit build records, Flush posts them.
type DevQP struct {
	t       Transport
	off     QP
	channel int

	// Host to DPU.
	h2d      mirror
	h2dPub   uint64 // consumed, as last written to the DevLine
	h2dCons  uint64 // consumed
	h2dRead  uint64 // fetched into the mirror
	h2dStop  uint64 // records end here, and go on at h2dOn
	h2dOn    uint64
	h2dGoal  uint64 // end of the fetch in flight, and what is in between
	goalStop uint64
	goalOn   uint64
	h2dPads  uint64 // bytes of padding consumed
	fetch    [2]DMA
	fetchOps [2]*DMA
	fetching bool

	// The host's control line, and what the DPU had published when the read
	// of it was posted.
	host     HostLine
	line     DMA
	lineOps  [1]*DMA
	lineBuf  [hostLineBytes]byte
	reading  bool
	lines    uint64 // reads of it that have come in
	postProd uint64
	postCons uint64
	postArm  uint32
	snapProd uint64
	snapCons uint64
	snapArm  uint32
	served   uint32 // Arm generation of the last interrupt

	// DPU to host.
	d2h     mirror
	d2hProd uint64 // built
	d2hSent uint64 // posted
	reserve uint64 // position of the open reservation
	d2hPad  uint64 // where padding begins that is not posted; 0: there is none
	lastPad pad
	d2hPads uint64 // bytes of padding built
	lap     lap
	dbArm   uint32
	dbSent  uint32
	flights []*flight // posted, oldest first
	free    []*flight
}

// flight is one Flush under way.
type flight struct {
	ops  [3]DMA
	list [3]*DMA
	n    int
	line [devLineBytes]byte
}

// mirror is a ring's copy in DPU memory, allocated at first use.
type mirror struct {
	buf  []byte
	size uint64
}

func (m *mirror) at(pos uint64) []byte {
	if m.buf == nil {
		m.buf = make([]byte, m.size)
	}
	return m.buf[pos&(m.size-1):]
}

// around tells where [from, to) stops short of the ring's end, because padding
// begins at pad or at that end, and where it goes on. Both are to, if it does
// not come round. A pad that cannot be is none.
func (m *mirror) around(from, to, pad uint64) (stop, on uint64) {
	end := (from | (m.size - 1)) + 1
	switch {
	case to < end:
		return to, to
	case pad != 0 && pad >= from && pad < end && pad%RecordAlign == 0:
		return pad, end
	}
	return end, end
}

// NewDevQP returns the DPU's end of the queue pair of a channel and shard. l
// must have passed Check.
func NewDevQP(t Transport, l Layout, channel, shard int) *DevQP {
	q := &DevQP{t: t, off: l.QP(channel, shard), channel: channel}
	q.h2d.size, q.d2h.size = uint64(l.H2DSize), uint64(l.D2HSize)
	q.line = DMA{Kind: DMARead, Line: true, Off: q.off.HostLine, Buf: q.lineBuf[:]}
	q.lineOps[0] = &q.line
	q.fetchOps = [2]*DMA{&q.fetch[0], &q.fetch[1]}
	q.lap.least = EarlyLap
	return q
}

// Pump advances the reads: the host's control line, then the records it
// announces. An error means that the host broke the protocol or that the
// transport failed; the queue pair is then of no further use.
func (q *DevQP) Pump() error {
	q.reclaim()
	if q.fetching {
		if !q.fetchDone() {
			return nil
		}
		q.fetched()
	}
	if !q.reading {
		if err := q.postLine(); err != nil {
			return err
		}
	}
	if !q.line.Done {
		return nil
	}
	q.reading = false
	if err := q.acceptLine(); err != nil {
		return err
	}
	return q.postFetch()
}

func (q *DevQP) postLine() error {
	q.postProd, q.postCons, q.postArm = q.d2hSent, q.h2dPub, q.dbSent
	q.line.Done = false
	if err := q.t.Post(q.lineOps[:]...); err != nil {
		return fmt.Errorf("read control line of channel %d: %w", q.channel, err)
	}
	q.reading = true
	return nil
}

// acceptLine takes over the control line after checking each position against
// what is possible.
func (q *DevQP) acceptLine() error {
	b := q.lineBuf[:]
	h := HostLine{
		H2DProd: le.Uint64(b), D2HCons: le.Uint64(b[8:]), D2HSeen: le.Uint64(b[16:]),
		Arm: le.Uint32(b[24:]), SpaceWant: le.Uint32(b[28:]), H2DPad: le.Uint64(b[32:]),
	}
	switch {
	case h.H2DProd < q.host.H2DProd || h.H2DProd-q.h2dPub > q.h2d.size || h.H2DProd%RecordAlign != 0:
		return fmt.Errorf("channel %d: H2D producer %d after %d, consumer %d: %w",
			q.channel, h.H2DProd, q.host.H2DProd, q.h2dPub, ErrProtocol)
	case h.D2HCons < q.host.D2HCons || h.D2HCons > q.d2hSent || h.D2HCons%RecordAlign != 0:
		return fmt.Errorf("channel %d: D2H consumer %d after %d, producer %d: %w",
			q.channel, h.D2HCons, q.host.D2HCons, q.d2hSent, ErrProtocol)
	case h.D2HSeen > q.d2hSent:
		return fmt.Errorf("channel %d: D2H seen %d, producer %d: %w", q.channel, h.D2HSeen, q.d2hSent, ErrProtocol)
	}
	q.host = h
	q.lines++
	q.snapProd, q.snapCons, q.snapArm = q.postProd, q.postCons, q.postArm
	return nil
}

func (q *DevQP) postFetch() error {
	if q.host.H2DProd == q.h2dRead {
		return nil
	}
	q.h2dGoal = q.host.H2DProd
	q.goalStop, q.goalOn = q.h2d.around(q.h2dRead, q.h2dGoal, q.host.H2DPad)
	ops := q.fetchOps[:]
	q.fetch[0] = q.read(q.h2dRead, q.goalStop)
	q.fetch[1] = q.read(q.goalOn, q.h2dGoal)
	if q.fetch[1].Done {
		ops = ops[:1]
	}
	if q.fetch[0].Done {
		ops = ops[1:]
	}
	if err := q.t.Post(ops...); err != nil {
		return fmt.Errorf("read records of channel %d: %w", q.channel, err)
	}
	if q.fetching = !q.fetchDone(); !q.fetching {
		q.fetched()
	}
	return nil
}

// read is the operation that fetches [from, to), which does not come round.
func (q *DevQP) read(from, to uint64) DMA {
	return DMA{
		Kind: DMARead, Off: q.off.H2D + from&(q.h2d.size-1),
		Buf: q.h2d.at(from)[:to-from], Done: from == to,
	}
}

// fetched takes over what has come in. From what is not consumed to what the
// host may have produced, the ring comes round once at most.
func (q *DevQP) fetched() {
	if q.h2dCons == q.h2dStop {
		q.skip()
	}
	if q.h2dStop == q.h2dRead {
		q.h2dStop, q.h2dOn = q.goalStop, q.goalOn
	}
	q.fetching, q.h2dRead = false, q.h2dGoal
}

// skip goes on behind the padding at which what is consumed has arrived. False:
// there is nothing behind it.
func (q *DevQP) skip() bool {
	q.h2dPads += q.h2dOn - q.h2dStop
	q.h2dCons, q.h2dStop, q.h2dOn = q.h2dOn, q.h2dRead, q.h2dRead
	return q.h2dCons != q.h2dStop
}

func (q *DevQP) fetchDone() bool { return q.fetch[0].Done && q.fetch[1].Done }

// Pending tells whether Next has something to look at.
func (q *DevQP) Pending() bool { return q.h2dCons != q.h2dRead }

// Mark is a point in what the host sends on one queue pair.
type Mark struct {
	lines uint64
	goal  uint64
	known bool
}

// Mark returns the end of what the host has published by now, whether the DPU
// has read it or not.
func (q *DevQP) Mark() Mark {
	m := Mark{lines: q.lines + 1}
	if q.reading {
		m.lines++ // the read under way may have been too early
	}
	return m
}

// Passed tells whether Next has handed out every record before m.
func (q *DevQP) Passed(m *Mark) bool {
	if !m.known {
		if q.lines < m.lines {
			return false
		}
		m.goal, m.known = q.host.H2DProd, true
	}
	return q.h2dCons >= m.goal
}

// Next returns the next record from the host and its payload, which stays
// valid until the Flush after the following call of Next. ok is false when
// all fetched records were handed out. An error wraps ErrProtocol.
func (q *DevQP) Next() (rec Record, payload []byte, ok bool, err error) {
	for q.h2dCons != q.h2dStop || q.skip() {
		b := q.h2d.at(q.h2dCons)
		rec = GetRecord(b)
		if rec.Op == OpPad {
			if uint64(len(b)) > q.h2dStop-q.h2dCons {
				return rec, nil, false, fmt.Errorf("channel %d: padding beyond the producer: %w", q.channel, ErrProtocol)
			}
			q.h2dCons += uint64(len(b))
			q.h2dPads += uint64(len(b))
			continue
		}
		n := int(rec.Len)
		space := RecordSpace(n)
		if n > MaxPayload || space > len(b) || uint64(space) > q.h2dStop-q.h2dCons {
			return rec, nil, false, fmt.Errorf("channel %d: record %d of %d bytes does not fit: %w",
				q.channel, rec.Op, n, ErrProtocol)
		}
		q.h2dCons += uint64(space)
		return rec, b[RecordHdr : RecordHdr+n : RecordHdr+n], true, nil
	}
	return rec, nil, false, nil
}

// Space is the largest payload that Reserve would grant now, at most
// MaxPayload; -1 if not even an empty record fits.
func (q *DevQP) Space() int {
	n := q.room(q.d2hProd) - RecordHdr
	if n < MaxPayload {
		q.lap.short(q.host.D2HCons)
	}
	// A record that does not fit before the end of the ring starts at its
	// beginning, which costs the padding.
	if tail := int(q.d2h.size - q.d2hProd&(q.d2h.size-1)); tail-RecordHdr < min(n, MaxPayload) {
		n = max(min(n, tail-RecordHdr), n-tail)
	}
	if n < 0 {
		return -1
	}
	return min(n&^(RecordAlign-1), MaxPayload)
}

// Fits tells whether records with n bytes of payload in all would find room,
// each as long as it may be.
func (q *DevQP) Fits(n int) bool {
	records := n/MaxPayload + 1
	need := n + records*(RecordHdr+RecordAlign)
	if int(q.d2h.size-q.d2hProd&(q.d2h.size-1)) < need {
		need += RecordSpace(MaxPayload) // a record does not wrap: padding
	}
	if q.room(q.d2hProd) < need {
		q.lap.short(q.host.D2HCons)
		return false
	}
	return true
}

func (q *DevQP) room(pos uint64) int { return int(q.d2h.size - (pos - q.host.D2HCons)) }

// Reserve returns space for a record's payload of up to n bytes in the D2H
// ring's mirror, nil if the ring has no room. Commit completes it; a Reserve
// without Commit is forgotten. A lap ends early only if the host has given all
// back: payloads that it holds before the padding would seem to fill the ring.
func (q *DevQP) Reserve(n int) []byte {
	pos := q.d2hProd
	space := RecordSpace(n)
	b := q.d2h.at(pos)
	need := space
	early := pos == q.host.D2HCons && q.lap.over(q.d2h.size, pos, pos)
	if early || len(b) < space {
		need += len(b)
	}
	if q.room(pos) < need {
		q.lap.short(q.host.D2HCons)
		return nil
	}
	if need != space {
		PutRecord(b, Record{Op: OpPad})
		pos += uint64(len(b))
		b = q.d2h.at(pos)
	}
	q.reserve = pos
	return b[RecordHdr : RecordHdr+n : RecordHdr+n]
}

// Commit completes the last Reserve with the first n bytes of its payload.
func (q *DevQP) Commit(op Op, flags uint8, sock, seq, ack uint32, n int) {
	if q.reserve != q.d2hProd {
		q.d2hPad, q.lastPad = q.d2hProd, pad{q.d2hProd, q.reserve}
		q.d2hPads += q.lastPad.size()
		q.lap.begins(q.reserve)
	}
	PutRecord(q.d2h.at(q.reserve), Record{Op: op, Flags: flags, Len: uint16(n), Sock: sock, Seq: seq, Ack: ack})
	q.d2hProd = q.reserve + uint64(RecordSpace(n))
}

// Emit reserves and commits a record with n payload bytes, which the caller
// fills before Flush. It returns nil, and emits nothing, if there is no room.
func (q *DevQP) Emit(op Op, flags uint8, sock, seq, ack uint32, n int) []byte {
	b := q.Reserve(n)
	if b != nil {
		q.Commit(op, flags, sock, seq, ack, n)
	}
	return b
}

// Dirty tells whether Flush has something to post.
func (q *DevQP) Dirty() bool {
	return q.d2hProd != q.d2hSent || q.h2dCons != q.h2dPub || q.dbArm != q.dbSent
}

// Flush posts the built records and then the DPU's control line.
func (q *DevQP) Flush() error {
	if !q.Dirty() {
		return nil
	}
	f := q.flight()
	f.n = 0
	if q.d2hProd != q.d2hSent {
		stop, on := q.d2h.around(q.d2hSent, q.d2hProd, q.d2hPad)
		if on != stop {
			stop += RecordHdr // the host reads that it is padding
		}
		f.add(q.write(q.d2hSent, stop))
		if on != q.d2hProd {
			f.add(q.write(on, q.d2hProd))
		}
		q.d2hPad = 0
	}
	le.PutUint64(f.line[:], q.d2hProd)
	le.PutUint64(f.line[8:], q.h2dCons)
	le.PutUint64(f.line[16:], uint64(q.dbArm))
	f.add(DMA{Kind: DMAWrite, Line: true, Off: q.off.DevLine, Buf: f.line[:]})
	if err := q.t.Post(f.list[:f.n]...); err != nil {
		return fmt.Errorf("write records of channel %d: %w", q.channel, err)
	}
	q.d2hSent, q.h2dPub, q.dbSent = q.d2hProd, q.h2dCons, q.dbArm
	q.flights = append(q.flights, f)
	q.reclaim()
	return nil
}

// write is the operation that posts [from, to), which does not come round.
func (q *DevQP) write(from, to uint64) DMA {
	return DMA{Kind: DMAWrite, Off: q.off.D2H + from&(q.d2h.size-1), Buf: q.d2h.at(from)[:to-from]}
}

func (f *flight) add(op DMA) {
	f.ops[f.n] = op
	f.list[f.n] = &f.ops[f.n]
	f.n++
}

func (q *DevQP) flight() *flight {
	if n := len(q.free); n > 0 {
		f := q.free[n-1]
		q.free = q.free[:n-1]
		return f
	}
	return new(flight)
}

func (q *DevQP) reclaim() {
	done := 0
	for _, f := range q.flights {
		if !f.ops[f.n-1].Done {
			break
		}
		q.free = append(q.free, f)
		done++
	}
	if done > 0 {
		q.flights = q.flights[:copy(q.flights, q.flights[done:])]
	}
}

// Asleep tells whether a host thread slept, or was about to, when its control
// line was read, and has had no interrupt since.
func (q *DevQP) Asleep() bool { return q.host.Arm&1 == 1 && q.host.Arm != q.served }

// InterruptDue tells whether a host thread sleeps that has something to see:
// records published before its control line was read, or ring space.
func (q *DevQP) InterruptDue() bool {
	h := &q.host
	if !q.Asleep() {
		return false
	}
	return q.snapProd > h.D2HSeen || h.SpaceWant != 0 && h.H2DProd-q.snapCons <= q.h2d.size/2
}

// Interrupt raises the channel's interrupt for the generation of Arm last
// read.
func (q *DevQP) Interrupt() {
	q.served = q.host.Arm
	q.t.Interrupt(q.channel)
}

// ArmDoorbell asks the host to ring the doorbell when it produces records.
// After Flush and Pump, Quiet tells whether the owner may sleep.
func (q *DevQP) ArmDoorbell() {
	if q.dbArm&1 == 0 {
		q.dbArm++
	} else {
		q.dbArm += 2
	}
}

// DisarmDoorbell withdraws the request.
func (q *DevQP) DisarmDoorbell() {
	if q.dbArm&1 == 1 {
		q.dbArm++
	}
}

// Armed tells whether the doorbell is asked for.
func (q *DevQP) Armed() bool { return q.dbArm&1 == 1 }

// Quiet tells whether the host's control line, read after the doorbell was
// armed, shows nothing to do, so that a later record must ring it.
func (q *DevQP) Quiet() bool {
	return q.Armed() && q.snapArm == q.dbArm && !q.reading && !q.fetching && !q.Pending() && !q.Dirty() &&
		q.host.H2DProd == q.h2dRead && !q.InterruptDue()
}

// DevQPStats are the load and state of a queue pair, for statistics. Bytes are
// those of records: padding is neither used nor moved.
type DevQPStats struct {
	H2DUsed     uint64 // produced, not consumed
	H2DConsumed uint64
	D2HUsed     uint64 // produced, not given back
	D2HProduced uint64
	H2DSize     uint64
	D2HSize     uint64
}

// Stats returns what the DPU knows of the queue pair.
func (q *DevQP) Stats() DevQPStats {
	s := DevQPStats{
		H2DUsed: q.host.H2DProd - q.h2dCons - (q.h2dOn - q.h2dStop), H2DConsumed: q.h2dCons - q.h2dPads,
		D2HUsed: q.d2hProd - q.host.D2HCons, D2HProduced: q.d2hProd - q.d2hPads,
		H2DSize: q.h2d.size, D2HSize: q.d2h.size,
	}
	if q.fetching {
		s.H2DUsed -= q.goalOn - q.goalStop
	}
	if q.host.D2HCons <= q.lastPad.from {
		s.D2HUsed -= q.lastPad.size()
	}
	return s
}

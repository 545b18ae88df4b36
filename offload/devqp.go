// SPDX-License-Identifier: Apache-2.0

package offload

import "fmt"

// Bytes of the control lines that carry fields; the rest is reserved.
const (
	hostLineBytes = 32
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
	h2dGoal  uint64 // end of the fetch in flight
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

// spans gives the one or two contiguous pieces of [from, to).
func (m *mirror) spans(from, to uint64) (a, b []byte) {
	n := to - from
	a = m.at(from)
	if uint64(len(a)) >= n {
		return a[:n], nil
	}
	return a, m.buf[:n-uint64(len(a))]
}

// NewDevQP returns the DPU's end of the queue pair of a channel and shard. l
// must have passed Check.
func NewDevQP(t Transport, l Layout, channel, shard int) *DevQP {
	q := &DevQP{t: t, off: l.QP(channel, shard), channel: channel}
	q.h2d.size, q.d2h.size = uint64(l.H2DSize), uint64(l.D2HSize)
	q.line = DMA{Kind: DMARead, Line: true, Off: q.off.HostLine, Buf: q.lineBuf[:]}
	q.lineOps[0] = &q.line
	q.fetchOps = [2]*DMA{&q.fetch[0], &q.fetch[1]}
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
		q.fetching, q.h2dRead = false, q.h2dGoal
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
		Arm: le.Uint32(b[24:]), SpaceWant: le.Uint32(b[28:]),
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
	a, b := q.h2d.spans(q.h2dRead, q.h2dGoal)
	start := q.off.H2D + q.h2dRead&(q.h2d.size-1)
	q.fetch[0] = DMA{Kind: DMARead, Off: start, Buf: a}
	q.fetch[1] = DMA{Kind: DMARead, Off: q.off.H2D, Buf: b, Done: len(b) == 0}
	ops := q.fetchOps[:]
	if len(b) == 0 {
		ops = ops[:1]
	}
	if err := q.t.Post(ops...); err != nil {
		return fmt.Errorf("read records of channel %d: %w", q.channel, err)
	}
	if q.fetching = !q.fetchDone(); !q.fetching {
		q.h2dRead = q.h2dGoal
	}
	return nil
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
	for q.h2dCons != q.h2dRead {
		b := q.h2d.at(q.h2dCons)
		rec = GetRecord(b)
		if rec.Op == OpPad {
			if uint64(len(b)) > q.h2dRead-q.h2dCons {
				return rec, nil, false, fmt.Errorf("channel %d: padding beyond the producer: %w", q.channel, ErrProtocol)
			}
			q.h2dCons += uint64(len(b))
			continue
		}
		n := int(rec.Len)
		space := RecordSpace(n)
		if n > MaxPayload || space > len(b) || uint64(space) > q.h2dRead-q.h2dCons {
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
	return q.room(q.d2hProd) >= need
}

func (q *DevQP) room(pos uint64) int { return int(q.d2h.size - (pos - q.host.D2HCons)) }

// Reserve returns space for a record's payload of up to n bytes in the D2H
// ring's mirror, nil if the ring has no room. Commit completes it; a Reserve
// without Commit is forgotten.
func (q *DevQP) Reserve(n int) []byte {
	pos := q.d2hProd
	space := RecordSpace(n)
	b := q.d2h.at(pos)
	if len(b) < space {
		if q.room(pos) < len(b)+space {
			return nil
		}
		PutRecord(b, Record{Op: OpPad})
		pos += uint64(len(b))
		b = q.d2h.at(pos)
	} else if q.room(pos) < space {
		return nil
	}
	q.reserve = pos
	return b[RecordHdr : RecordHdr+n : RecordHdr+n]
}

// Commit completes the last Reserve with the first n bytes of its payload.
func (q *DevQP) Commit(op Op, flags uint8, sock, seq, ack uint32, n int) {
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
		a, b := q.d2h.spans(q.d2hSent, q.d2hProd)
		f.add(DMA{Kind: DMAWrite, Off: q.off.D2H + q.d2hSent&(q.d2h.size-1), Buf: a})
		if len(b) > 0 {
			f.add(DMA{Kind: DMAWrite, Off: q.off.D2H, Buf: b})
		}
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

// DevQPStats are positions and state of a queue pair, for statistics.
type DevQPStats struct {
	H2DProd uint64 `json:"h2d_prod"`
	H2DCons uint64 `json:"h2d_cons"`
	D2HProd uint64 `json:"d2h_prod"`
	D2HCons uint64 `json:"d2h_cons"`
	H2DSize uint64 `json:"h2d_size"`
	D2HSize uint64 `json:"d2h_size"`
	Arm     uint32 `json:"arm"`
	DBArm   uint32 `json:"doorbell_arm"`
}

// Stats returns the queue pair's positions as the DPU knows them.
func (q *DevQP) Stats() DevQPStats {
	return DevQPStats{
		H2DProd: q.host.H2DProd, H2DCons: q.h2dCons, D2HProd: q.d2hProd, D2HCons: q.host.D2HCons,
		H2DSize: q.h2d.size, D2HSize: q.d2h.size, Arm: q.host.Arm, DBArm: q.dbArm,
	}
}

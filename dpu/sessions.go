// SPDX-License-Identifier: Apache-2.0

package dpu

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"pno/dpu/session"
	"pno/dpu/shard"
	"pno/offload"
	"pno/offload/shm"
)

// process is a session as the whole DPU sees it.
type process struct {
	layout offload.Layout
	region *shm.Region
	proc   offload.Process
	opened time.Time
	kept   bool // asked for by the present agent
}

// totals count sessions over the DPU's life.
type totals struct {
	opened, closed, refused, violators uint64
	reasons                            map[string]uint64
}

// Shards implements control.Backend.
func (d *DPU) Shards() int { return len(d.shards) }

// OpenSession implements control.Backend: it maps the session memory and adds
// the session to every shard.
func (d *DPU) OpenSession(id uint64, l offload.Layout, p offload.Process, memory int, doorbells []int) error {
	err := d.openSession(id, l, p, memory, doorbells)
	if err != nil {
		d.mu.Lock()
		d.totals.refused++
		d.mu.Unlock()
	}
	return err
}

func (d *DPU) openSession(id uint64, l offload.Layout, p offload.Process, memory int, doorbells []int) error {
	if err := sealed(memory); err != nil {
		_ = unix.Close(memory)
		closeAll(doorbells)
		return err
	}
	region, err := shm.Map(memory, l.TotalSize())
	_ = unix.Close(memory)
	if err != nil {
		closeAll(doorbells)
		return err
	}
	defer func() {
		if err != nil {
			_ = region.Close()
		}
	}()
	for i, s := range d.shards {
		if e := unix.SetNonblock(doorbells[i], true); e != nil {
			closeAll(doorbells[i:])
			err = fmt.Errorf("set doorbell non-blocking: %w", e)
		} else {
			var t offload.Transport = region.NewTransport(doorbells[i])
			if d.c.WrapTransport != nil {
				t = d.c.WrapTransport(t, l.TotalSize())
			}
			if e := d.do(s, func() { err = s.Table.Open(id, l, t, p) }); e != nil {
				err = e
			}
			if err != nil {
				closeAll(doorbells[i+1:])
			}
		}
		if err != nil {
			d.closeOn(d.shards[:i], id)
			return err
		}
	}
	d.mu.Lock()
	d.sessions[id] = &process{layout: l, region: region, proc: p, opened: time.Now(), kept: true}
	d.totals.opened++
	d.mu.Unlock()
	d.c.Log.Info("session opened", "session", id, "pid", p.PID, "process", p.Name)
	return nil
}

// sealed refuses a memory that the host could make shorter: touching what is
// no longer there would end the whole DPU.
func sealed(memory int) error {
	seals, err := unix.FcntlInt(uintptr(memory), unix.F_GET_SEALS, 0)
	if err != nil {
		return fmt.Errorf("read seals of session memory: %w", err)
	}
	if seals&unix.F_SEAL_SHRINK == 0 {
		return errors.New("session memory is not sealed against shrinking")
	}
	return nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

// KeepSession implements control.Backend.
func (d *DPU) KeepSession(id uint64, l offload.Layout) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.sessions[id]
	if p == nil || p.layout != l {
		return fmt.Errorf("re-adopt session %d: %w", id, session.ErrNoSession)
	}
	p.kept = true
	return nil
}

// drainTime bounds how long the end of a session waits for its last records.
// They can be stuck: nobody empties the other ring any more.
const drainTime = 250 * time.Millisecond

// drain has every shard execute what lies in a session's rings.
func (d *DPU) drain(id uint64) {
	deadline := time.Now().Add(drainTime)
	for _, s := range d.shards {
		d.drainShard(s, id, deadline)
	}
}

// drainShard is drain for one shard. What looks empty is looked at twice: the
// first look may have begun before the process wrote its last.
func (d *DPU) drainShard(s *shard.Shard, id uint64, deadline time.Time) {
	for quiet := 0; quiet < 2 && time.Now().Before(deadline); {
		more := false
		if d.do(s, func() { more = s.Table.Drain(id) }) != nil {
			return // who needs the session will say so
		}
		if quiet++; more {
			quiet = 0
		}
		time.Sleep(50 * time.Microsecond)
	}
}

// catchUpTime bounds the same for a session that lives, and may be busy.
const catchUpTime = 20 * time.Millisecond

// catchUp makes sure that what a session has closed before it asks for a socket
// is closed: if it is the same socket, it would be given what is about to go.
func (d *DPU) catchUp(s *shard.Shard, id uint64) {
	d.drainShard(s, id, time.Now().Add(catchUpTime))
}

// CloseSession implements control.Backend.
func (d *DPU) CloseSession(id uint64, reason string) error {
	d.drain(id)
	if !d.forget(id, reason, false) {
		return fmt.Errorf("close session %d: %w", id, session.ErrNoSession)
	}
	d.closeOn(d.shards, id)
	return nil
}

// forget takes a session off the list and reports whether it was there.
func (d *DPU) forget(id uint64, reason string, violation bool) bool {
	if reason == "" {
		reason = "process ended"
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.sessions[id]
	if p == nil {
		return false
	}
	delete(d.sessions, id)
	d.totals.closed++
	if violation {
		d.totals.violators++
		reason = "protocol violation"
	}
	if len(d.totals.reasons) < 64 || d.totals.reasons[reason] > 0 {
		d.totals.reasons[reason]++
	}
	if err := p.region.Close(); err != nil {
		d.c.Log.Warn("unmap session memory", "session", id, "err", err)
	}
	d.c.Log.Info("session closed", "session", id, "pid", p.proc.PID, "reason", reason)
	return true
}

// closeOn ends a session on some shards; those that do not have it are
// content.
func (d *DPU) closeOn(shards []*shard.Shard, id uint64) {
	forks := 0
	for _, s := range shards {
		err := d.do(s, func() {
			_ = s.Table.Close(id)
			forks += s.Table.Waiting(id)
		})
		if err != nil {
			d.c.Log.Warn("close session", "session", id, "err", err)
		}
	}
	if forks == 0 {
		return
	}
	// Its process may have died between OpFork and telling of the child.
	time.AfterFunc(d.c.ForkTimeout, func() {
		for _, s := range shards {
			_ = d.do(s, func() { s.Table.Expire(id) }) // an error: everything has ended
		}
	})
}

// sessionFailed ends a session that one shard has dropped, and tells the
// agent, which tells the process.
func (d *DPU) sessionFailed(id uint64, reason string) {
	d.c.Log.Warn("session ended by the DPU", "session", id, "reason", reason)
	if !d.forget(id, reason, true) {
		return
	}
	d.closeOn(d.shards, id)
	if d.control != nil {
		d.control.Notify(id, reason)
	}
}

// OpenChannel implements control.Backend. Repeated, it replaces the
// interrupt.
func (d *DPU) OpenChannel(id uint64, channel, interrupt int) error {
	d.mu.Lock()
	p := d.sessions[id]
	d.mu.Unlock()
	if p == nil || channel < 0 || channel >= p.layout.Channels {
		_ = unix.Close(interrupt)
		return fmt.Errorf("open channel %d of session %d: %w", channel, id, session.ErrNoSession)
	}
	if err := unix.SetNonblock(interrupt, true); err != nil {
		_ = unix.Close(interrupt)
		return fmt.Errorf("set interrupt non-blocking: %w", err)
	}
	if err := p.region.OpenChannel(channel, interrupt); err != nil {
		return err
	}
	for _, s := range d.shards {
		var err error
		if e := d.do(s, func() { err = s.Table.OpenChannel(id, channel) }); e != nil {
			return e
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// AdoptFork implements control.Backend.
func (d *DPU) AdoptFork(id uint64, token [16]byte) error {
	known := false
	var errs []error
	for _, s := range d.shards {
		errs = append(errs, d.do(s, func() {
			k, err := s.Table.Adopt(id, token)
			known = known || k
			errs = append(errs, err)
		}))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if !known {
		return errors.New("unknown fork token")
	}
	return nil
}

// DropFork implements control.Backend.
func (d *DPU) DropFork(token [16]byte) error {
	var errs []error
	for _, s := range d.shards {
		errs = append(errs, d.do(s, func() { s.Table.Drop(token) }))
	}
	return errors.Join(errs...)
}

// KeepFork implements control.Backend.
func (d *DPU) KeepFork(token [16]byte) error {
	var errs []error
	for _, s := range d.shards {
		errs = append(errs, d.do(s, func() { s.Table.Keep(token) }))
	}
	return errors.Join(errs...)
}

// Transfer implements control.Backend.
func (d *DPU) Transfer(to, from uint64, index int, handle uint32) (n uint32, err error) {
	if index < 0 || index >= len(d.shards) {
		return 0, fmt.Errorf("transfer socket on shard %d of %d", index, len(d.shards))
	}
	s := d.shards[index]
	d.catchUp(s, to)
	if e := d.do(s, func() { n, err = s.Table.Transfer(to, from, handle) }); e != nil {
		return 0, e
	}
	return n, err
}

// TransferParked implements control.Backend.
func (d *DPU) TransferParked(to uint64, token [16]byte, index int) (n uint32, err error) {
	if index < 0 || index >= len(d.shards) {
		return 0, fmt.Errorf("transfer socket on shard %d of %d", index, len(d.shards))
	}
	s := d.shards[index]
	d.catchUp(s, to)
	if e := d.do(s, func() { n, err = s.Table.TransferParked(to, token) }); e != nil {
		return 0, e
	}
	return n, err
}

// Connected implements control.Backend: sessions of an earlier agent have to
// be asked for.
func (d *DPU) Connected() {
	for _, s := range d.shards {
		// Only the former agent could tell when these have no user any more.
		_ = d.do(s, s.Table.DropParked)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.agent = true
	for _, p := range d.sessions {
		p.kept = false
	}
	d.schedule(d.c.AdoptTimeout, "not re-adopted by the host agent")
}

// Disconnected implements control.Backend.
func (d *DPU) Disconnected() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.agent = false
	for _, p := range d.sessions {
		p.kept = false
	}
	d.schedule(d.c.AgentTimeout, "host agent gone")
}

// schedule ends, after a while, the sessions that nobody asked for by then.
// Called with mu held.
func (d *DPU) schedule(after time.Duration, reason string) {
	if d.lapse != nil {
		d.lapse.Stop()
		d.lapse = nil
	}
	if len(d.sessions) == 0 || d.closed {
		return
	}
	d.lapse = time.AfterFunc(after, func() {
		d.mu.Lock()
		var ids []uint64
		for id, p := range d.sessions {
			if !p.kept {
				ids = append(ids, id)
			}
		}
		d.mu.Unlock()
		for _, id := range ids {
			_ = d.CloseSession(id, reason) // it may have ended by itself
		}
	})
}

// close forgets the sessions; the shards close them as they stop.
func (d *DPU) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	if d.lapse != nil {
		d.lapse.Stop()
	}
	for id, p := range d.sessions {
		delete(d.sessions, id)
		if err := p.region.Close(); err != nil {
			d.c.Log.Warn("unmap session memory", "session", id, "err", err)
		}
	}
}

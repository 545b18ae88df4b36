// SPDX-License-Identifier: Apache-2.0

package server

import (
	"errors"
	"runtime"
	"sync"
	"time"

	"pno/crypto/audit"
	"pno/crypto/engine"
	"pno/crypto/signing"
	"pno/crypto/wire"
	cryptov1 "pno/proto/pno/crypto/v1"
)

// complete is the sink of engine i.
func (s *Server) complete(i int, done []*engine.Op) {
	for _, op := range done {
		if op.Exec > 0 {
			op.Owner.(*pending).key.learn(op.Exec)
		}
	}
	s.elsewhere(s.lanes[i].took(done))
	for _, op := range done {
		p := op.Owner.(*pending)
		if op.Err == nil && op.Task.Scheme.RSA() && !s.infos[i].Verifies {
			// A signature with a fault in it gives the key away.
			if err := signing.Verify(p.key.public, &op.Task, op.Out); err != nil {
				op.Err, op.Out = signing.Errorf(signing.Internal, "%s engine: %v", s.infos[i].Kind, err), nil
			}
		}
		if op.Err == nil {
			s.answer(p, nil)
			continue
		}
		e, ok := errors.AsType[*signing.Error](op.Err)
		if !ok {
			e = signing.Errorf(signing.Internal, "%v", op.Err)
		}
		// The engine's fault and not the request's: the next one may do it, as when
		// the cluster behind a remote engine is gone.
		if e.Status.Elsewhere() {
			counter := s.metrics.undone
			if e.Status == signing.Internal {
				counter = s.metrics.faults
			}
			counter.WithLabelValues(s.infos[i].Kind).Inc()
			if more, tell := s.told[i].again(time.Now()); tell {
				s.cfg.Log.Error("engine failed", "engine", s.infos[i].Kind, "key", p.key.name, "status", e.Status.String(), "reason", e.Text, "before", more)
			}
			if s.choose(p) {
				op.Err, op.Out = nil, nil
				s.elsewhere(s.lanes[p.engine].put(p.st.client, []*engine.Op{op}))
				continue
			}
		}
		s.answer(p, e)
	}
}

// told bounds what is logged of an engine: one fault a second, with the number of
// those since the last one that were not.
type told struct {
	mu   sync.Mutex
	next time.Time
	more int
}

func (t *told) again(now time.Time) (more int, tell bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if now.Before(t.next) {
		t.more++
		return 0, false
	}
	more, t.more, t.next = t.more, 0, now.Add(time.Second)
	return more, true
}

// answer ends an operation: it is counted, recorded, and its result queued.
func (s *Server) answer(p *pending, err *signing.Error) {
	now := time.Now()
	total := now.Sub(p.arrived)
	r := &p.result
	r.Id, r.Status = p.id, cryptov1.Status(signing.OK)
	st := signing.OK
	if err != nil {
		st = err.Status
		r.Status, r.Text = cryptov1.Status(st), err.Text[:min(len(err.Text), wire.MaxText)]
	} else {
		r.Data = p.op.Out
	}
	if !p.op.Started.IsZero() {
		queue := p.op.Started.Sub(p.arrived)
		r.QueueMicros, r.ExecMicros = micros(queue), micros(p.op.Exec)
		s.metrics.queue.Observe(queue.Seconds())
		s.metrics.exec.Observe(p.op.Exec.Seconds())
	}
	s.metrics.count(st)
	rec := audit.Record{Time: now, Client: p.st.client, Key: p.req.Key, Scheme: p.req.Scheme, Input: p.req.Input, Status: st, Micros: micros(total)}
	if p.op.Started.IsZero() && err != nil {
		s.refuseClient(rec, "", "") // nothing was done with a key
	} else {
		s.record(rec)
	}
	if p.key != nil {
		p.key.release()
	}
	p.st.out.add(r)
}

func micros(d time.Duration) uint32 { return uint32(min(max(d.Microseconds(), 0), 1<<32-1)) }

// outbox is what a stream has to say. Its length is bounded by the stream's
// slots: one is given back when its result has been written.
//
// The stream's reader writes what has come up while it was at work, in its own
// time: a client that does not read its answers keeps nobody but itself. Engines
// must not wait for clients: what they answer between, the stream's writer sends.
type outbox struct {
	g     sender
	slots chan struct{}
	some  chan struct{} // holds one token while there is something for the writer

	mu      sync.Mutex
	ready   []*cryptov1.Result
	info    *cryptov1.WorkerInfo
	held    bool // the reader is going to write
	writing bool // somebody does, until there is nothing left
	closed  bool

	// Of who writes.
	spare []*cryptov1.Result
	resp  cryptov1.OperateResponse
}

type sender interface {
	Send(*cryptov1.OperateResponse) error
}

func (o *outbox) signal() {
	select {
	case o.some <- struct{}{}:
	default:
	}
}

func (o *outbox) add(r *cryptov1.Result) {
	o.mu.Lock()
	o.ready = append(o.ready, r)
	taken := o.held || o.writing
	o.mu.Unlock()
	if !taken {
		o.signal()
	}
}

// tell sends the worker's description.
func (o *outbox) tell(info *cryptov1.WorkerInfo) {
	o.mu.Lock()
	o.info = info
	o.mu.Unlock()
	o.signal()
}

func (o *outbox) close() {
	o.mu.Lock()
	o.closed = true
	o.mu.Unlock()
	o.signal()
}

// hold leaves what comes up to the reader, until its flush.
func (o *outbox) hold() {
	o.mu.Lock()
	o.held = true
	o.mu.Unlock()
}

// leave ends hold, and has the writer write.
func (o *outbox) leave() {
	o.mu.Lock()
	o.held = false
	some := (len(o.ready) > 0 || o.info != nil) && !o.writing
	o.mu.Unlock()
	if some {
		o.signal()
	}
}

// flush ends hold, and writes.
func (o *outbox) flush() error {
	o.mu.Lock()
	o.held = false
	return o.write()
}

// run is the stream's writer, until the outbox is closed.
func (o *outbox) run() error {
	for range o.some {
		runtime.Gosched() // whoever is about to add something, may
		o.mu.Lock()
		if o.closed {
			o.mu.Unlock()
			return nil
		}
		if o.held {
			o.mu.Unlock()
			continue
		}
		if err := o.write(); err != nil {
			return err
		}
	}
	return nil
}

// write sends until there is nothing left, unless somebody else does: all that
// has come up goes out in one response. It is called with the lock, and returns
// without it.
func (o *outbox) write() error {
	if o.writing {
		o.mu.Unlock()
		return nil
	}
	o.writing = true
	for !o.closed && (len(o.ready) > 0 || o.info != nil) {
		all, info := o.ready, o.info
		o.ready, o.info = o.spare[:0], nil
		o.mu.Unlock()
		if err := o.sendAll(all, info); err != nil {
			return err // the stream is over, and writing stays true
		}
		clear(all)
		o.mu.Lock()
		o.spare = all
	}
	o.writing = false
	o.mu.Unlock()
	return nil
}

func (o *outbox) sendAll(ready []*cryptov1.Result, info *cryptov1.WorkerInfo) error {
	for first := true; len(ready) > 0 || info != nil && first; first = false {
		n := min(len(ready), wire.MaxBatch)
		o.resp.Results, o.resp.Worker = ready[:n], info
		if !first {
			o.resp.Worker = nil
		}
		if err := o.g.Send(&o.resp); err != nil {
			return err
		}
		for range n {
			<-o.slots
		}
		ready = ready[n:]
	}
	return nil
}

// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"pno/crypto/acl"
	"pno/crypto/audit"
	"pno/crypto/engine"
	"pno/crypto/signing"
	"pno/crypto/wire"
	cryptov1 "pno/proto/pno/crypto/v1"
)

// stream is one client's stream.
type stream struct {
	client string
	peer   *knownPeer
	other  bool // not of Operate: see otherStream
	out    outbox
	slots  chan struct{} // one for each open operation
	dead   chan struct{} // closed by kill
	once   sync.Once
	reason error

	// Of the reader alone: what the rules in force say, by key.
	rules  *acl.Rules
	grants map[signing.KeyID]acl.Grant
	batch  [][]*engine.Op // by engine, what a request brought
}

// kill ends the stream from outside.
func (st *stream) kill(reason error) {
	st.once.Do(func() {
		st.reason = reason
		close(st.dead)
	})
}

// pending is an open operation; its Owner is itself.
type pending struct {
	op      engine.Op
	st      *stream
	id      uint64
	key     *key
	req     signing.Request
	arrived time.Time
	result  cryptov1.Result
	engine  int    // that has it
	tried   uint64 // engines that had it, or had no room
}

// cost is how long the engine may take, in microseconds, from what its key's
// operations took.
func (p *pending) cost() int64 { return min(max(p.key.cost.Load(), 1), maxCost) }

const maxCost = 100_000

// Operate implements the service.
func (s *Server) Operate(g cryptov1.CryptoService_OperateServer) error {
	st, err := s.enter(g.Context(), false)
	if err != nil {
		return err
	}
	defer s.leave(st)
	st.out.g = g
	st.out.tell(s.info())
	writer, reader := make(chan error, 1), make(chan error, 1)
	go func() { writer <- st.out.run() }()
	go func() { reader <- s.read(g, st) }()
	defer st.out.close()
	select {
	case <-st.dead:
		return status.Error(codes.PermissionDenied, st.reason.Error())
	case err := <-writer:
		return err
	case err := <-reader:
		if err != nil {
			return err
		}
	}
	// The client has said all; answer what is open. Each slot taken here is one
	// that no operation has any more.
	for range cap(st.slots) {
		select {
		case st.slots <- struct{}{}:
		case <-st.dead:
			return status.Error(codes.PermissionDenied, st.reason.Error())
		case err := <-writer:
			return err
		}
	}
	return nil
}

func (s *Server) open(ctx context.Context) (*stream, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil, status.Error(codes.Internal, "no peer")
	}
	known, ok := p.AuthInfo.(*knownPeer)
	if !ok {
		return nil, status.Error(codes.Unauthenticated, "not over TLS")
	}
	if err := s.checkPeer(known); err != nil {
		s.metrics.handshakes.Inc()
		s.refuseStranger(p.Addr, signing.Denied, "stream refused", err)
		return nil, status.Error(codes.PermissionDenied, err.Error())
	}
	slots := make(chan struct{}, s.cfg.MaxInflight)
	return &stream{
		client: known.standing.Load().URI, peer: known, slots: slots, dead: make(chan struct{}),
		out: outbox{slots: slots, some: make(chan struct{}, 1)}, batch: make([][]*engine.Op, len(s.engines)),
	}, nil
}

var errDrains = errors.New("the worker is draining")

// enter is open for what lasts: it counts, until leave, as one of the client's
// streams.
func (s *Server) enter(ctx context.Context, other bool) (*stream, error) {
	st, err := s.open(ctx)
	if err != nil {
		return nil, err
	}
	st.other = other
	if err := s.doors.enterStream(st.client); err != nil {
		s.metrics.limited.WithLabelValues("streams").Inc()
		s.refuseClient(audit.Record{Time: time.Now(), Client: st.client, Status: signing.Overloaded}, "stream refused", err.Error())
		return nil, status.Error(codes.ResourceExhausted, err.Error())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining.Load() {
		s.doors.leaveStream(st.client)
		return nil, status.Error(codes.Unavailable, errDrains.Error())
	}
	s.streams[st] = struct{}{}
	s.metrics.streams.Set(float64(len(s.streams)))
	return st, nil
}

func (s *Server) leave(st *stream) {
	s.mu.Lock()
	delete(s.streams, st)
	s.metrics.streams.Set(float64(len(s.streams)))
	s.mu.Unlock()
	s.doors.leaveStream(st.client)
}

// otherStream holds the streams of other services, Watch of the health service and
// reflection, to what holds for those of Operate: they are counted, they end when
// their client loses its right, and no drain waits for them.
func (s *Server) otherStream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	if info.FullMethod == cryptov1.CryptoService_Operate_FullMethodName {
		return handle(srv, ss)
	}
	st, err := s.enter(ss.Context(), true)
	if err != nil {
		return err
	}
	defer s.leave(st)
	ended := make(chan error, 1)
	go func() { ended <- handle(srv, ss) }() // it ends with the stream, at the latest
	select {
	case err := <-ended:
		return err
	case <-st.dead:
		if errors.Is(st.reason, errDrains) {
			return status.Error(codes.Unavailable, st.reason.Error())
		}
		return status.Error(codes.PermissionDenied, st.reason.Error())
	}
}

// read takes requests until the client closes its side.
func (s *Server) read(g cryptov1.CryptoService_OperateServer, st *stream) error {
	for {
		asked := time.Now()
		req, err := g.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			if status.Code(err) == codes.ResourceExhausted || status.Code(err) == codes.Internal {
				s.malformed(st, err.Error())
			}
			return err
		}
		if len(req.Operations) > wire.MaxBatch {
			s.malformed(st, "too many operations in one request")
			return status.Errorf(codes.InvalidArgument, "%d operations in one request, at most %d", len(req.Operations), wire.MaxBatch)
		}
		if rules := s.rules.Load(); rules != st.rules {
			st.rules, st.grants = rules, map[signing.KeyID]acl.Grant{}
		}
		now := time.Now()
		st.out.hold()
		for _, op := range req.Operations {
			select {
			case st.slots <- struct{}{}:
			default:
				// Let the engines have what there is before waiting.
				s.submit(st)
				if err := st.out.flush(); err != nil {
					return err
				}
				select {
				case st.slots <- struct{}{}:
				case <-g.Context().Done():
					return g.Context().Err()
				}
				st.out.hold()
			}
			s.accept(st, op, now)
		}
		if now.Sub(asked) < s.lull || !s.computed(st) {
			s.submit(st)
		}
		if len(st.slots) > 1 {
			st.out.leave() // there is more to come, which goes together
		} else if err := st.out.flush(); err != nil {
			return err
		}
	}
}

// An operation that comes alone and does not take long is computed by the reader,
// but not if it had come before the reader asked for it: others of the stream would
// wait for it meanwhile, and there seem to be others.
const (
	lull = 10 * time.Microsecond
	long = 2 * quantum // microseconds
)

// computed has an operation that is the stream's only one computed here and now,
// if nothing waits for the engine.
func (s *Server) computed(st *stream) bool {
	if len(st.slots) != 1 {
		return false
	}
	for i, ops := range st.batch {
		if len(ops) == 1 && s.here[i] != nil && ops[0].Owner.(*pending).cost() <= long && s.lanes[i].admit(st.client) {
			st.batch[i] = ops[:0]
			if !s.here[i].SubmitHere(ops[0]) {
				s.elsewhere(s.lanes[i].give(ops))
			}
			clear(ops)
			return true
		}
	}
	return false
}

func (s *Server) malformed(st *stream, reason string) {
	s.metrics.malformed.Inc()
	s.refuseClient(audit.Record{Time: time.Now(), Client: st.client, Status: signing.BadInput}, "stream ended: malformed request", reason)
}

// accept checks one operation and puts it into the batch of an engine, or
// answers it.
func (s *Server) accept(st *stream, in *cryptov1.Operation, now time.Time) {
	p := &pending{st: st, id: in.Id, arrived: now, req: signing.Request{Scheme: signing.Scheme(in.Scheme), Input: signing.Input(in.Input), Data: in.Data}}
	if err := s.prepare(p, in, now); err != nil {
		s.answer(p, err)
		return
	}
	p.op.Owner = p
	if !s.choose(p) {
		s.answer(p, signing.Errorf(signing.Internal, "no engine has the key"))
		return
	}
	st.batch[p.engine] = append(st.batch[p.engine], &p.op)
}

func (s *Server) prepare(p *pending, in *cryptov1.Operation, now time.Time) *signing.Error {
	if in.Scheme > 0xffff || in.Input < 0 || in.Input > 0xff {
		return signing.Errorf(signing.BadScheme, "scheme %#x, input %d", in.Scheme, in.Input)
	}
	if len(in.KeyId) != len(p.req.Key) {
		return signing.Errorf(signing.BadInput, "a key id of %d bytes, want %d", len(in.KeyId), len(p.req.Key))
	}
	copy(p.req.Key[:], in.KeyId)
	if p.key = s.lookup(p.req.Key); p.key == nil {
		return signing.Errorf(signing.UnknownKey, "")
	}
	grant, known := p.st.grants[p.key.id]
	if !known {
		grant = p.st.rules.Grant(p.st.client, p.key.id, p.key.name)
		p.st.grants[p.key.id] = grant
	}
	if err := grant.Check(&p.req, now); err != nil {
		return err
	}
	task, err := signing.Prepare(&p.req, p.key.public, p.key.tls13Only)
	if err != nil {
		e, ok := errors.AsType[*signing.Error](err)
		if !ok {
			e = signing.Errorf(signing.Internal, "%v", err)
		}
		return e
	}
	limit := s.cfg.MaxTimeout
	if t := time.Duration(in.TimeoutMicros) * time.Microsecond; t > 0 && t < limit {
		limit = t
	}
	p.op.Task, p.op.Deadline = task, now.Add(limit)
	return nil
}

// submit hands each engine its batch.
func (s *Server) submit(st *stream) {
	for i, ops := range st.batch {
		if len(ops) == 0 {
			continue
		}
		s.elsewhere(s.lanes[i].put(st.client, ops))
		clear(ops)
		st.batch[i] = ops[:0]
	}
}

// elsewhere finds a place for what a lane has refused: the next engine that has
// the key. When there is none, the operation is refused.
func (s *Server) elsewhere(ops []*engine.Op) {
	for _, op := range ops {
		p := op.Owner.(*pending)
		if !s.choose(p) {
			s.answer(p, signing.Errorf(signing.Overloaded, "the queues are full"))
			continue
		}
		s.elsewhere(s.lanes[p.engine].put(p.st.client, []*engine.Op{op}))
	}
}

// choose moves an operation to the engine that should have it next: the first
// that has its key and was not tried, or of several of that kind, as cards are,
// the one with least to do.
func (s *Server) choose(p *pending) bool {
	best, left := -1, 0
	for i, k := range p.key.loaded {
		if k == nil || p.tried&(1<<i) != 0 {
			continue
		}
		left++
		switch {
		case best < 0:
			best = i
		case s.infos[i].Kind == s.infos[best].Kind && s.lanes[i].busy() < s.lanes[best].busy():
			best = i
		}
	}
	if best < 0 {
		return false
	}
	p.engine, p.op.Key, p.op.Next = best, p.key.loaded[best], left > 1
	p.tried |= 1 << best
	return true
}

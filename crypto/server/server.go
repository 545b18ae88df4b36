// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"

	"pno/crypto/acl"
	"pno/crypto/audit"
	"pno/crypto/engine"
	"pno/crypto/mtls"
	"pno/crypto/signing"
	"pno/crypto/wire"
	cryptov1 "pno/proto/pno/crypto/v1"
)

// Opener starts an engine whose completions go to sink.
type Opener func(sink engine.Sink) (engine.Engine, error)

// Config is what a worker is made of.
type Config struct {
	Name     string
	Identity *mtls.Identity
	Rules    *acl.Rules
	Engines  []Opener   // preferred first
	Audit    *audit.Log // may be nil: nothing is recorded
	Log      *slog.Logger

	MaxInflight int           // operations of one stream; 0: wire.MaxInflight
	Limits      Limits        // of connections and streams
	Summary     time.Duration // between records that sum refusals up; 0: 10 s
	MaxTimeout  time.Duration // of an operation; 0: 10 s
	CheckEvery  time.Duration // the peers of open streams; 0: 1 s
	Reflection  bool
}

// Server is a worker.
type Server struct {
	cryptov1.UnimplementedCryptoServiceServer
	cfg     Config
	engines []engine.Engine
	infos   []engine.Info
	lanes   []*lane       // before each engine
	here    []engine.Here // each engine, if it can
	lull    time.Duration // const, but for tests
	told    []told        // of each engine's faults
	rules   atomic.Pointer[acl.Rules]
	table   atomic.Pointer[table]
	loading sync.Mutex // one LoadKeys at a time
	lookups lookups
	doors   *doors

	strangers, clients *refusals

	metrics *metrics
	grpc    *grpc.Server
	health  *health.Server

	draining atomic.Bool
	closing  sync.Once
	closed   error // of Close
	mu       sync.Mutex
	streams  map[*stream]struct{}
}

// maxEngines is how many bits pending.tried has.
const maxEngines = 64

// New starts the engines of a worker without keys.
func New(cfg Config) (*Server, error) {
	if cfg.MaxInflight == 0 {
		cfg.MaxInflight = wire.MaxInflight
	}
	if cfg.MaxTimeout == 0 {
		cfg.MaxTimeout = 10 * time.Second
	}
	if len(cfg.Engines) == 0 || len(cfg.Engines) > maxEngines {
		return nil, fmt.Errorf("start worker: %d engines, want 1 to %d", len(cfg.Engines), maxEngines)
	}
	if cfg.CheckEvery == 0 {
		cfg.CheckEvery = time.Second
	}
	if cfg.Summary == 0 {
		cfg.Summary = 10 * time.Second
	}
	cfg.Limits.complete()
	s := &Server{cfg: cfg, doors: newDoors(cfg.Limits), strangers: newRefusals(cfg.Summary, 16, 256), clients: newRefusals(cfg.Summary, 64, 4096),
		metrics: newMetrics(cfg.Identity), streams: map[*stream]struct{}{}, health: health.NewServer(), lookups: lookups{due: map[string]time.Time{}}, lull: lull}
	s.told = make([]told, len(cfg.Engines))
	s.rules.Store(cfg.Rules)
	s.table.Store(&table{})
	for i, open := range cfg.Engines {
		e, err := open(func(done []*engine.Op) { s.complete(i, done) })
		if err != nil {
			return nil, errors.Join(fmt.Errorf("start worker: %w", err), s.closeEngines())
		}
		here, _ := e.(engine.Here)
		s.engines, s.infos, s.lanes, s.here = append(s.engines, e), append(s.infos, e.Info()), append(s.lanes, newLane(e)), append(s.here, here)
		s.metrics.tell(cfg.Log, s.infos[i])
	}
	s.grpc = grpc.NewServer(
		grpc.Creds(doorCreds{cfg.Identity.Server(s.handshakeFailed), s}),
		grpc.MaxRecvMsgSize(wire.MaxMessage),
		grpc.MaxConcurrentStreams(64),
		grpc.StreamInterceptor(s.otherStream),
		grpc.InitialWindowSize(wire.Window),
		grpc.InitialConnWindowSize(wire.ConnWindow),
		grpc.ConnectionTimeout(10*time.Second),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: wire.PermittedPing, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: wire.ServerPing, Timeout: wire.ServerTimeout}),
	)
	cryptov1.RegisterCryptoServiceServer(s.grpc, s)
	healthpb.RegisterHealthServer(s.grpc, s.health)
	s.health.SetServingStatus("", healthpb.HealthCheckResponse_NOT_SERVING)
	if cfg.Reflection {
		reflection.Register(s.grpc)
	}
	return s, nil
}

// Serve takes connections until Drain or Close. The listener becomes its own.
func (s *Server) Serve(lis net.Listener) error {
	if err := s.grpc.Serve(listener{lis, s}); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}

// SetRules puts access rules in force, for open streams at once.
func (s *Server) SetRules(r *acl.Rules) {
	r.Inherit(s.rules.Load(), time.Now())
	s.rules.Store(r)
	s.CheckPeers()
}

// CheckPeers ends the streams of clients whose certificate is revoked, has
// expired, or is of an authority that is no longer believed in. It is to be called
// when the authorities have changed; Watch calls it for what time changes.
func (s *Server) CheckPeers() {
	s.mu.Lock()
	open := make([]*stream, 0, len(s.streams))
	for st := range s.streams {
		open = append(open, st)
	}
	s.mu.Unlock()
	found := map[*knownPeer]error{}
	for _, st := range open {
		err, known := found[st.peer]
		if !known {
			err = s.checkPeer(st.peer)
			found[st.peer] = err
		}
		if err != nil {
			s.metrics.ended.Inc()
			s.cfg.Log.Warn("stream ended: the client has lost its right", "client", st.client, "reason", err)
			st.kill(err)
		}
	}
}

// knownPeer is the client at the other end of a connection. All of its streams
// and calls share what is known about its certificate, which is verified anew only
// when it may have changed: that is the dearest part of a look at it.
type knownPeer struct {
	credentials.TLSInfo
	standing atomic.Pointer[mtls.Standing]
}

func (p *knownPeer) chain() []*x509.Certificate { return p.State.PeerCertificates }

func (s *Server) checkPeer(p *knownPeer) error {
	if old := p.standing.Load(); old == nil || !s.cfg.Identity.Holds(*old, time.Now()) {
		standing, err := s.cfg.Identity.Stand(p.chain(), x509.ExtKeyUsageClientAuth)
		if err != nil {
			return err
		}
		p.standing.Store(&standing)
	}
	if s.rules.Load().Revoked(p.chain()[0]) {
		return errors.New("the certificate is revoked")
	}
	return nil
}

// Watch checks the peers of open streams, and sums refusals up, until ctx ends.
func (s *Server) Watch(ctx context.Context) {
	tick := time.NewTicker(s.cfg.CheckEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			s.CheckPeers()
			s.sumRefusals(now, false)
		}
	}
}

func (s *Server) handshakeFailed(addr net.Addr, err error) {
	s.metrics.handshakes.Inc()
	s.refuseStranger(addr, signing.Denied, "handshake refused", err)
}

func (s *Server) record(r audit.Record) {
	if s.cfg.Audit != nil {
		s.cfg.Audit.Add(r)
	}
}

// info describes the worker to a client.
func (s *Server) info() *cryptov1.WorkerInfo {
	w := &cryptov1.WorkerInfo{Name: s.cfg.Name, MaxBatch: wire.MaxBatch, MaxInflight: uint32(s.cfg.MaxInflight), Draining: s.draining.Load()}
	for _, i := range s.infos {
		w.Engines = append(w.Engines, &cryptov1.Engine{Kind: i.Kind, Detail: i.Detail, Capacity: uint32(i.Capacity),
			Batch: uint32(i.Batch), Simulated: i.Simulated, Features: i.Features})
	}
	return w
}

// Drain sends clients away, waits until ctx ends for their streams to end, and
// closes the worker. What they ask before they know of it is done like anything
// else: were it refused, all of it would have to be asked again at once.
func (s *Server) Drain(ctx context.Context) error {
	s.draining.Store(true)
	s.doors.expel()
	s.health.Shutdown()
	s.mu.Lock()
	for st := range s.streams {
		if st.other {
			st.kill(errDrains) // it would last as long as its client likes
		} else {
			st.out.tell(s.info())
		}
	}
	s.mu.Unlock()
	done := make(chan struct{})
	go func() {
		s.grpc.GracefulStop()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
	}
	return s.Close()
}

// Close ends every stream, the keys, and the engines. A second call returns what
// the first did.
func (s *Server) Close() error {
	s.closing.Do(func() {
		s.draining.Store(true)
		s.doors.expel()
		s.grpc.Stop()
		for _, l := range s.lanes {
			for _, op := range l.close() {
				s.answer(op.Owner.(*pending), signing.Errorf(signing.Unavailable, "the worker ends"))
			}
		}
		// A key that an operation still holds is wiped when that comes back, which
		// the engine waits for.
		for _, k := range s.table.Swap(&table{}).keys {
			k.release()
		}
		s.closed = s.closeEngines()
		s.sumRefusals(time.Now(), true)
	})
	return s.closed
}

func (s *Server) closeEngines() error {
	var errs []error
	for _, e := range s.engines {
		errs = append(errs, e.Close())
	}
	return errors.Join(errs...)
}

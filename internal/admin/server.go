// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"sync"
	"time"

	grpcprom "github.com/grpc-ecosystem/go-grpc-middleware/providers/prometheus"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/logging"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/recovery"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"

	adminv1 "pno/proto/pno/admin/v1"
)

// Limits of the server. Everything it is sent is small.
const (
	maxRequest     = 64 << 10
	maxStreams     = 64
	callTimeout    = 10 * time.Second
	stopTimeout    = 2 * time.Second
	healthInterval = time.Second
	// MinPing is how often a client may ask whether the server is there.
	MinPing = 10 * time.Second
)

// Options of ServeDPU and ServeHost.
type Options struct {
	// Log takes one line a failed call, and starts and stops. Not nil.
	Log *slog.Logger
	// Metrics is the TCP address of the /metrics endpoint; empty for none.
	Metrics string
	// Reflection lets tools without the .proto files ask for the services.
	Reflection bool
	// Collectors are metrics of what else the daemon runs.
	Collectors []prometheus.Collector
	// Health has what else the daemon runs, by service name, as the health
	// service answers for it.
	Health map[string]func() bool
	// Ready, if not nil, is called once, when both endpoints take
	// connections. metrics is the address in use, nil for none.
	Ready func(metrics net.Addr)
}

// ServeDPU serves the admin API of a DPU on a Unix socket, and its metrics,
// until ctx ends. It returns nil then, and an error if it could not begin or
// broke.
func ServeDPU(ctx context.Context, path string, dpu DPU, opts Options) error {
	b := dpuBackend{dpu}
	return serve(ctx, path, b, newDPUCollector(b), opts, func(s *grpc.Server) []string {
		adminv1.RegisterDpuServiceServer(s, &dpuService{backend: b})
		return []string{adminv1.DpuService_ServiceDesc.ServiceName}
	})
}

// ServeHost is ServeDPU for a host agent.
func ServeHost(ctx context.Context, path string, host Host, opts Options) error {
	b := hostBackend{host}
	return serve(ctx, path, b, newHostCollector(b), opts, func(s *grpc.Server) []string {
		adminv1.RegisterHostServiceServer(s, &hostService{backend: b})
		return []string{adminv1.HostService_ServiceDesc.ServiceName}
	})
}

// serve runs both endpoints. register adds the services of the role and
// returns their names.
func serve(ctx context.Context, path string, b backend, c prometheus.Collector, opts Options, register func(*grpc.Server) []string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	registry := newRegistry(c)
	grpcMetrics := grpcprom.NewServerMetrics()
	registry.MustRegister(append([]prometheus.Collector{grpcMetrics}, opts.Collectors...)...)

	lis, err := listenUnix(ctx, path)
	if err != nil {
		return err
	}
	defer func() { _ = lis.Close() }() // closed already after an orderly stop
	var (
		web         *http.Server
		metricsLis  net.Listener
		metricsAddr net.Addr
	)
	if opts.Metrics != "" {
		if metricsLis, err = listenMetrics(ctx, opts.Metrics); err != nil {
			return err
		}
		metricsAddr = metricsLis.Addr()
		web = newMetricsServer(registry, opts.Log)
	}

	srv := newGRPC(opts.Log, grpcMetrics)
	names := append(register(srv), adminv1.AdminService_ServiceDesc.ServiceName)
	adminv1.RegisterAdminServiceServer(srv, &adminService{backend: b, stopping: ctx.Done()})
	healthServer := health.NewServer()
	for _, name := range names {
		healthServer.SetServingStatus(name, healthpb.HealthCheckResponse_SERVING)
	}
	healthpb.RegisterHealthServer(srv, healthServer)
	if opts.Reflection {
		reflection.Register(srv)
	}
	grpcMetrics.InitializeMetrics(srv)

	var (
		wg     sync.WaitGroup
		broken = make(chan error, 2)
	)
	wg.Go(func() { watchHealth(ctx, healthServer, b.serving, opts.Health) })
	wg.Go(func() {
		if err := srv.Serve(lis); err != nil {
			broken <- fmt.Errorf("serve admin API on %s: %w", path, err)
		}
	})
	if web != nil {
		wg.Go(func() {
			if err := web.Serve(metricsLis); !errors.Is(err, http.ErrServerClosed) {
				broken <- fmt.Errorf("serve metrics on %v: %w", metricsAddr, err)
			}
		})
	}
	opts.Log.Info("admin API ready", "socket", path, "metrics", opts.Metrics)
	if opts.Ready != nil {
		opts.Ready(metricsAddr)
	}

	select {
	case <-ctx.Done():
		err = nil
	case err = <-broken:
	}
	cancel()
	healthServer.Shutdown()
	stop(srv, web)
	wg.Wait()
	return err
}

// stop ends both servers: orderly if that takes little time, else at once.
func stop(srv *grpc.Server, web *http.Server) {
	late := time.AfterFunc(stopTimeout, srv.Stop)
	defer late.Stop()
	srv.GracefulStop()
	if web == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	if web.Shutdown(ctx) != nil {
		_ = web.Close() // what is left has had its time
	}
}

// newGRPC makes a server whose interceptors run in this order: metrics see
// every call, the log sees what became of it, recovery stands next to the
// handler and makes an error of its panic.
func newGRPC(log *slog.Logger, metrics *grpcprom.ServerMetrics) *grpc.Server {
	logger := logging.LoggerFunc(func(ctx context.Context, level logging.Level, msg string, fields ...any) {
		log.Log(ctx, slog.Level(level), msg, fields...)
	})
	logOpts := []logging.Option{
		logging.WithLogOnEvents(logging.FinishCall),
		logging.WithLevels(logLevel),
		logging.WithDisableLoggingFields(logging.SystemTag[0], logging.ComponentFieldKey, "peer.address"),
	}
	recoverOpt := recovery.WithRecoveryHandler(func(p any) error {
		log.Error("admin call panicked", "panic", p, "stack", string(debug.Stack()))
		return status.Error(codes.Internal, "internal error; the daemon's log has the details")
	})
	return grpc.NewServer(
		grpc.ChainUnaryInterceptor(
			metrics.UnaryServerInterceptor(),
			logging.UnaryServerInterceptor(logger, logOpts...),
			recovery.UnaryServerInterceptor(recoverOpt),
			limitTime,
		),
		grpc.ChainStreamInterceptor(
			metrics.StreamServerInterceptor(),
			logging.StreamServerInterceptor(logger, logOpts...),
			recovery.StreamServerInterceptor(recoverOpt),
		),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: MinPing, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: time.Minute, Timeout: 20 * time.Second}),
		grpc.ConnectionTimeout(5*time.Second),
		grpc.MaxRecvMsgSize(maxRequest),
		grpc.MaxConcurrentStreams(maxStreams),
	)
}

// limitTime gives a call without a deadline one.
func limitTime(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return next(ctx, req)
}

// logLevel keeps the log for what an operator may have to act upon: what the
// client did wrong is told to the client.
func logLevel(code codes.Code) logging.Level {
	switch code {
	case codes.OK, codes.Canceled, codes.InvalidArgument, codes.NotFound, codes.Unimplemented,
		codes.DeadlineExceeded, codes.Unavailable:
		return logging.LevelDebug
	}
	return logging.LevelError
}

// watchHealth keeps the overall health (the empty service name) in step with
// whether applications are served. The admin services themselves are always
// well while they answer. more are the other services of this daemon.
func watchHealth(ctx context.Context, h *health.Server, serving func() bool, more map[string]func() bool) {
	tick := time.NewTicker(healthInterval)
	defer tick.Stop()
	for {
		h.SetServingStatus("", healthState(serving()))
		for name, well := range more {
			h.SetServingStatus(name, healthState(well()))
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func healthState(serving bool) healthpb.HealthCheckResponse_ServingStatus {
	if serving {
		return healthpb.HealthCheckResponse_SERVING
	}
	return healthpb.HealthCheckResponse_NOT_SERVING
}

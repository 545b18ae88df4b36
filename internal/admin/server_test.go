// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	dpureport "pno/dpu/report"
	"pno/internal/admin/admintest"
	adminv1 "pno/proto/pno/admin/v1"
)

// lockedBuffer collects what the server logs.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

type running struct {
	path    string
	metrics net.Addr
	conn    *grpc.ClientConn
	log     *lockedBuffer
	stop    func() error
}

// start serves until the test ends or stop is called.
func start(t *testing.T, serve func(ctx context.Context, path string, opts Options) error, opts Options) *running {
	t.Helper()
	r := &running{path: filepath.Join(t.TempDir(), "a.sock"), log: new(lockedBuffer)}
	ctx, cancel := context.WithCancel(t.Context())
	ready, done := make(chan net.Addr, 1), make(chan error, 1)
	opts.Log = slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	opts.Ready = func(a net.Addr) { ready <- a }
	go func() { done <- serve(ctx, r.path, opts) }()
	select {
	case r.metrics = <-ready:
	case err := <-done:
		t.Fatal(err)
	case <-time.After(10 * time.Second):
		t.Fatal("not ready after 10 s")
	}
	conn, err := grpc.NewClient("unix://"+r.path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	r.conn = conn
	r.stop = sync.OnceValue(func() error {
		cancel()
		select {
		case err := <-done:
			return err
		case <-time.After(10 * time.Second):
			return errors.New("still serving 10 s after its end")
		}
	})
	t.Cleanup(func() {
		if err := r.stop(); err != nil {
			t.Error(err)
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func serveDPU(dpu DPU) func(context.Context, string, Options) error {
	return func(ctx context.Context, path string, opts Options) error { return ServeDPU(ctx, path, dpu, opts) }
}

func serveHost(ctx context.Context, path string, opts Options) error {
	return ServeHost(ctx, path, admintest.Host{}, opts)
}

func TestDPUOverSocket(t *testing.T) {
	r := start(t, serveDPU(admintest.DPU{}), Options{})
	info, err := os.Stat(r.path)
	if err != nil || info.Mode().Perm() != socketMode {
		t.Errorf("socket mode %v, want %o (%v)", info.Mode(), socketMode, err)
	}
	common, dpu := adminv1.NewAdminServiceClient(r.conn), adminv1.NewDpuServiceClient(r.conn)
	st, err := common.GetStatus(t.Context(), &adminv1.GetStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if s := st.GetStatus(); s.GetRole() != adminv1.Role_ROLE_DPU || s.GetVersion() != admintest.Version ||
		!s.GetPeerConnected() || s.GetShards() != 2 || s.GetCpu().GetCount() == 0 || s.GetPid() != int64(os.Getpid()) {
		t.Errorf("status %v", s)
	}
	var names []string
	for token := ""; ; {
		page, err := dpu.ListSockets(t.Context(), &adminv1.ListSocketsRequest{PageSize: 2, PageToken: token, Parent: "sessions/7"})
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range page.GetSockets() {
			names = append(names, s.GetName())
		}
		if token = page.GetNextPageToken(); token == "" {
			break
		}
	}
	want := "sessions/7/sockets/0-00000002 sessions/7/sockets/0-00000003 sessions/7/sockets/0-80000001 sessions/7/sockets/1-00000005"
	if got := strings.Join(names, " "); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if _, err := adminv1.NewHostServiceClient(r.conn).GetPolicy(t.Context(), &adminv1.GetPolicyRequest{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("a host's call to a DPU: %v", err)
	}
}

// Every Get finds by the name that its List gave, and says what it wants else.
func TestGetByName(t *testing.T) {
	r := start(t, serveDPU(admintest.DPU{}), Options{})
	common, dpu := adminv1.NewAdminServiceClient(r.conn), adminv1.NewDpuServiceClient(r.conn)
	host := adminv1.NewHostServiceClient(start(t, serveHost, Options{}).conn)
	ctx := t.Context()
	tests := []struct {
		name string
		get  func(name string) (string, error)
	}{
		{"sessions/9", func(n string) (string, error) {
			m, err := common.GetSession(ctx, &adminv1.GetSessionRequest{Name: n})
			return m.GetSession().GetName(), err
		}},
		{"sessions/9/sockets/0-80000403", func(n string) (string, error) {
			m, err := dpu.GetSocket(ctx, &adminv1.GetSocketRequest{Name: n})
			return m.GetSocket().GetName(), err
		}},
		{"sessions/7/rings/0-1", func(n string) (string, error) {
			m, err := dpu.GetRing(ctx, &adminv1.GetRingRequest{Name: n})
			return m.GetRing().GetName(), err
		}},
		{"shards/1", func(n string) (string, error) {
			m, err := dpu.GetShard(ctx, &adminv1.GetShardRequest{Name: n})
			return m.GetShard().GetName(), err
		}},
		{"links/0", func(n string) (string, error) {
			m, err := dpu.GetLink(ctx, &adminv1.GetLinkRequest{Name: n})
			return m.GetLink().GetName(), err
		}},
		{"policy", func(n string) (string, error) {
			m, err := host.GetPolicy(ctx, &adminv1.GetPolicyRequest{Name: n})
			return m.GetPolicy().GetName(), err
		}},
	}
	for _, tt := range tests {
		t.Run(strings.ReplaceAll(tt.name, "/", "_"), func(t *testing.T) {
			if got, err := tt.get(tt.name); err != nil || got != tt.name {
				t.Errorf("got %q, %v", got, err)
			}
			if _, err := tt.get("nothing/0"); status.Code(err) != codes.NotFound {
				t.Errorf("a name of nothing: %v", err)
			}
			if _, err := tt.get(""); status.Code(err) != codes.InvalidArgument {
				t.Errorf("no name: %v", err)
			}
		})
	}
}

func TestWatchStats(t *testing.T) {
	r := start(t, serveHost, Options{})
	c := adminv1.NewAdminServiceClient(r.conn)
	stream, err := c.WatchStats(t.Context(), &adminv1.WatchStatsRequest{Interval: durationpb.New(minInterval)})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		m, err := stream.Recv()
		if err != nil || m.GetStats().GetHost().GetSockets().GetOffloaded() == 0 {
			t.Fatalf("%v, %v", m, err)
		}
	}
	// A daemon that stops does not wait for those who watch.
	begin := time.Now()
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took > stopTimeout {
		t.Errorf("stopping took %v", took)
	}
	for err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.Unavailable {
		t.Errorf("the stream ended with %v", err)
	}
}

func TestWatchStatsRefusesInterval(t *testing.T) {
	c := adminv1.NewAdminServiceClient(start(t, serveHost, Options{}).conn)
	for _, d := range []time.Duration{0, -1, time.Millisecond, 2 * time.Hour} {
		stream, err := c.WatchStats(t.Context(), &adminv1.WatchStatsRequest{Interval: durationpb.New(d)})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); status.Code(err) != codes.InvalidArgument {
			t.Errorf("interval %v: %v", d, err)
		}
	}
}

// sick is a DPU that does not serve and whose socket table is broken.
type sick struct{ admintest.DPU }

func (sick) Health() dpureport.Health {
	return dpureport.Health{Reasons: []string{"shard 1 does not answer"}}
}

func (sick) Sockets() []dpureport.Socket { panic("table is on fire") }

func TestHealth(t *testing.T) {
	for want, r := range map[healthpb.HealthCheckResponse_ServingStatus]*running{
		healthpb.HealthCheckResponse_SERVING:     start(t, serveDPU(admintest.DPU{}), Options{}),
		healthpb.HealthCheckResponse_NOT_SERVING: start(t, serveDPU(sick{}), Options{}),
	} {
		c := healthpb.NewHealthClient(r.conn)
		watch, err := c.Watch(t.Context(), &healthpb.HealthCheckRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for got := healthpb.HealthCheckResponse_UNKNOWN; got != want; {
			m, err := watch.Recv()
			if err != nil {
				t.Fatal(err)
			}
			got = m.GetStatus()
		}
		m, err := c.Check(t.Context(), &healthpb.HealthCheckRequest{Service: "pno.admin.v1.AdminService"})
		if err != nil || m.GetStatus() != healthpb.HealthCheckResponse_SERVING {
			t.Errorf("admin service: %v, %v", m, err)
		}
	}
}

// A panic in one call is that call's error, logged and counted; the daemon
// lives on.
func TestPanicIsAnError(t *testing.T) {
	r := start(t, serveDPU(sick{}), Options{Metrics: "127.0.0.1:0"})
	dpu := adminv1.NewDpuServiceClient(r.conn)
	if _, err := dpu.ListSockets(t.Context(), &adminv1.ListSocketsRequest{}); status.Code(err) != codes.Internal || strings.Contains(err.Error(), "fire") {
		t.Errorf("got %v", err)
	}
	if log := r.log.String(); !strings.Contains(log, "table is on fire") || !strings.Contains(log, "ListSockets") {
		t.Errorf("log: %s", log)
	}
	if got := get(t, r, "/metrics"); !strings.Contains(got, `grpc_server_handled_total{grpc_code="Internal",grpc_method="ListSockets"`) {
		t.Error("not counted as Internal")
	}
	if _, err := dpu.ListShards(t.Context(), &adminv1.ListShardsRequest{}); err != nil {
		t.Error(err)
	}
}

func TestExplainPolicy(t *testing.T) {
	c := adminv1.NewHostServiceClient(start(t, serveHost, Options{}).conn)
	tests := []struct {
		name                                  string
		process, operation, protocol, address string
		code                                  codes.Code
		action                                string
		line                                  uint32
	}{
		{"first rule", "nginx", "listen", "", "198.18.0.2:80", codes.OK, "offload", 4},
		{"first rule, IPv4 in IPv6", "nginx", "listen", "tcp", "[::ffff:198.18.0.2]:80", codes.OK, "offload", 4},
		{"port beyond", "nginx", "listen", "tcp", "198.18.0.2:8080", codes.OK, "kernel", 7},
		{"another process", "redis-server", "listen", "tcp", "198.18.0.2:80", codes.OK, "kernel", 7},
		{"loopback", "nginx", "connect", "tcp", "127.0.0.1:80", codes.OK, "kernel", 0},
		{"operation", "nginx", "accept", "tcp", "198.18.0.2:80", codes.InvalidArgument, "", 0},
		{"protocol", "nginx", "listen", "sctp", "198.18.0.2:80", codes.InvalidArgument, "", 0},
		{"address", "nginx", "listen", "tcp", "localhost:80", codes.InvalidArgument, "", 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m, err := c.ExplainPolicy(t.Context(), &adminv1.ExplainPolicyRequest{
				Name: "policy", Process: tt.process, Operation: tt.operation, Protocol: tt.protocol, Address: tt.address,
			})
			d := m.GetDecision()
			if status.Code(err) != tt.code || d.GetAction() != tt.action || d.GetLine() != tt.line || (d.GetReason() == "") != (err != nil) {
				t.Errorf("%v, %v", d, err)
			}
		})
	}
	if _, err := c.ExplainPolicy(t.Context(), &adminv1.ExplainPolicyRequest{}); status.Code(err) != codes.NotFound {
		t.Errorf("no name: %v", err)
	}
}

// odd is a DPU whose hosts chose names that are not text.
type odd struct{ admintest.DPU }

func (odd) Sockets() []dpureport.Socket { return []dpureport.Socket{{Process: "a\xffb"}} }

func (odd) Sessions() []dpureport.Session { return []dpureport.Session{{Process: "\xc3"}} }

func (odd) Stats() dpureport.Stats {
	return dpureport.Stats{Sessions: dpureport.SessionTotals{ByReason: map[string]uint64{"\xff": 1, "\xfe": 2}}}
}

func TestNamesThatAreNotText(t *testing.T) {
	r := start(t, serveDPU(odd{}), Options{Metrics: "127.0.0.1:0"})
	common := adminv1.NewAdminServiceClient(r.conn)
	sockets, err := adminv1.NewDpuServiceClient(r.conn).ListSockets(t.Context(), &adminv1.ListSocketsRequest{})
	if err != nil || sockets.GetSockets()[0].GetProcess() != "a?b" {
		t.Errorf("%v, %v", sockets, err)
	}
	if _, err := common.ListSessions(t.Context(), &adminv1.ListSessionsRequest{}); err != nil {
		t.Error(err)
	}
	stats, err := common.GetStats(t.Context(), &adminv1.GetStatsRequest{})
	if err != nil || stats.GetStats().GetDpu().GetSessions().GetClosedByReason()["?"] != 3 {
		t.Errorf("%v, %v", stats, err)
	}
	if got := get(t, r, "/metrics"); !strings.HasPrefix(got, "200 ") {
		t.Error(got)
	}
}

func TestReflectionIsOptional(t *testing.T) {
	for _, on := range []bool{false, true} {
		r := start(t, serveHost, Options{Reflection: on})
		stream, err := reflectionpb.NewServerReflectionClient(r.conn).ServerReflectionInfo(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		// An error of Send is the stream's, and Recv tells it.
		_ = stream.Send(&reflectionpb.ServerReflectionRequest{
			MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{},
		})
		_, err = stream.Recv()
		if want := map[bool]codes.Code{true: codes.OK, false: codes.Unimplemented}[on]; status.Code(err) != want {
			t.Errorf("reflection %v: %v", on, err)
		}
	}
}

func TestListenErrors(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	long := filepath.Join(dir, strings.Repeat("x", 110))
	taken := start(t, serveHost, Options{})
	tests := []struct{ name, path, want string }{
		{"a file", file, "admin socket " + file + ": there is a file that is not a socket; remove it, or name another path"},
		{"no folder", filepath.Join(dir, "none", "s"), "admin socket " + dir + "/none/s: there is no folder " + dir + "/none; make it, or name another path"},
		{"long", long, "the path of a socket has 1 to 107 bytes"},
		{"served", taken.path, "admin socket " + taken.path + ": another process serves there; stop it, or name another path"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := ServeHost(t.Context(), tt.path, admintest.Host{}, Options{Log: slog.New(slog.DiscardHandler)})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got  %v\nwant %s", err, tt.want)
			}
		})
	}
	if !errors.Is(ServeHost(t.Context(), taken.path, admintest.Host{}, Options{Log: slog.New(slog.DiscardHandler)}), ErrInUse) {
		t.Error("not ErrInUse")
	}
	if _, err := os.Stat(file); err != nil {
		t.Errorf("the file that is not ours: %v", err)
	}
}

func TestStaleSocketIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.sock")
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	// Bound and closed: what a killed daemon leaves behind.
	if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}), syscall.Close(fd)); err != nil {
		t.Fatal(err)
	}
	r := start(t, func(ctx context.Context, _ string, opts Options) error {
		return ServeHost(ctx, path, admintest.Host{}, opts)
	}, Options{})
	if err := r.stop(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after the end: %v", err)
	}
}

func TestMetricsAddressInUse(t *testing.T) {
	lis, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lis.Close() }()
	path := filepath.Join(t.TempDir(), "a.sock")
	err = ServeHost(t.Context(), path, admintest.Host{}, Options{Log: slog.New(slog.DiscardHandler), Metrics: lis.Addr().String()})
	if err == nil || !strings.HasPrefix(err.Error(), "metrics address "+lis.Addr().String()+" is in use; name another one, or none") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left behind: %v", err)
	}
}

func TestNothingIsLeftRunning(t *testing.T) {
	before := runtime.NumGoroutine()
	t.Run("serve", func(t *testing.T) {
		r := start(t, serveDPU(admintest.DPU{}), Options{Metrics: "127.0.0.1:0"})
		get(t, r, "/metrics")
		if _, err := adminv1.NewAdminServiceClient(r.conn).GetStats(t.Context(), &adminv1.GetStatsRequest{}); err != nil {
			t.Error(err)
		}
	})
	for deadline := time.Now().Add(20 * time.Second); runtime.NumGoroutine() > before; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			stacks := make([]byte, 1<<16)
			t.Fatalf("%d goroutines before, now:\n%s", before, stacks[:runtime.Stack(stacks, true)])
		}
	}
}

func get(t *testing.T, r *running, path string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+r.metrics.String()+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.Status + "\n" + string(body)
}

// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"context"
	"net/netip"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"pno/host/policy"
	adminv1 "pno/proto/pno/admin/v1"
)

// Bounds of WatchStatsRequest.interval.
const (
	minInterval     = 100 * time.Millisecond
	maxInterval     = time.Hour
	defaultInterval = time.Second
)

// adminService serves what both daemons have. It has no state.
type adminService struct {
	adminv1.UnimplementedAdminServiceServer
	backend backend
	// stopping ends the streams, so that a graceful stop does not wait for
	// clients that watch for ever.
	stopping <-chan struct{}
}

func (s *adminService) GetStatus(context.Context, *adminv1.GetStatusRequest) (*adminv1.GetStatusResponse, error) {
	return &adminv1.GetStatusResponse{Status: identify(s.backend.status())}, nil
}

func (s *adminService) GetStats(context.Context, *adminv1.GetStatsRequest) (*adminv1.GetStatsResponse, error) {
	return &adminv1.GetStatsResponse{Stats: s.backend.stats()}, nil
}

func (s *adminService) WatchStats(req *adminv1.WatchStatsRequest, stream grpc.ServerStreamingServer[adminv1.WatchStatsResponse]) error {
	interval := defaultInterval
	if req.GetInterval() != nil {
		interval = req.GetInterval().AsDuration()
	}
	if interval < minInterval || interval > maxInterval {
		return status.Errorf(codes.InvalidArgument, "interval %v: want %v to %v", interval, minInterval, maxInterval)
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		if err := stream.Send(&adminv1.WatchStatsResponse{Stats: s.backend.stats()}); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-stream.Context().Done():
			return status.FromContextError(stream.Context().Err()).Err()
		case <-s.stopping:
			return status.Error(codes.Unavailable, "the daemon is stopping")
		}
	}
}

func sessionKey(s *adminv1.Session) key { return key{s.GetSession()} }

func (s *adminService) ListSessions(_ context.Context, req *adminv1.ListSessionsRequest) (*adminv1.ListSessionsResponse, error) {
	kept, err := keep(s.backend.sessions(), req.GetFilter())
	if err != nil {
		return nil, err
	}
	items, next, err := paginate(kept, sessionKey, req, "", defaultPage, maxPage)
	if err != nil {
		return nil, err
	}
	return &adminv1.ListSessionsResponse{Sessions: items, NextPageToken: next}, nil
}

func (s *adminService) GetSession(_ context.Context, req *adminv1.GetSessionRequest) (*adminv1.GetSessionResponse, error) {
	m, err := find(s.backend.sessions(), "session", "sessions/7", req.GetName())
	if err != nil {
		return nil, err
	}
	return &adminv1.GetSessionResponse{Session: m}, nil
}

// hostService serves what only hostd has. It has no state.
type hostService struct {
	adminv1.UnimplementedHostServiceServer
	backend hostBackend
}

// operations are those that a policy tells apart.
var operations = map[string]policy.Op{policy.Listen.String(): policy.Listen, policy.Connect.String(): policy.Connect}

func (s *hostService) ExplainPolicy(_ context.Context, req *adminv1.ExplainPolicyRequest) (*adminv1.ExplainPolicyResponse, error) {
	if req.GetName() != policyName {
		return nil, status.Errorf(codes.NotFound, "no policy named %q; there is %s", req.GetName(), policyName)
	}
	op, ok := operations[req.GetOperation()]
	if !ok {
		return nil, status.Errorf(codes.InvalidArgument, "operation %q: want listen or connect", req.GetOperation())
	}
	proto := policy.TCP
	if req.GetProtocol() != "" {
		if err := proto.UnmarshalText([]byte(req.GetProtocol())); err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "protocol: %v", err)
		}
	}
	addr, err := netip.ParseAddrPort(req.GetAddress())
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "address %q: want ADDRESS:PORT or [ADDRESS]:PORT", req.GetAddress())
	}
	d := s.backend.host.Policy().Explain(req.GetProcess(), op, proto, addr)
	return &adminv1.ExplainPolicyResponse{Decision: &adminv1.PolicyDecision{
		Action: d.Action.String(), Line: uint32(d.Line), Reason: text(d.Why),
	}}, nil
}

func (s *hostService) GetPolicy(_ context.Context, req *adminv1.GetPolicyRequest) (*adminv1.GetPolicyResponse, error) {
	m, err := find([]*adminv1.Policy{s.backend.policy()}, "policy", policyName, req.GetName())
	if err != nil {
		return nil, err
	}
	return &adminv1.GetPolicyResponse{Policy: m}, nil
}

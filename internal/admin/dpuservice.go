// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"context"

	adminv1 "pno/proto/pno/admin/v1"
)

// dpuService serves what only dpud has. It has no state.
type dpuService struct {
	adminv1.UnimplementedDpuServiceServer
	backend dpuBackend
}

func socketKey(s *adminv1.Socket) key {
	return key{s.GetSession(), uint64(s.GetShard()), uint64(s.GetHandle())}
}

func ringKey(r *adminv1.Ring) key {
	return key{r.GetSession(), uint64(r.GetChannel()), uint64(r.GetShard())}
}

func shardKey(s *adminv1.Shard) key { return key{uint64(s.GetShard())} }

// ofSession keeps the items of a parent.
func ofSession[T interface{ GetSession() uint64 }](items []T, parent string) ([]T, error) {
	session, all, err := parseParent(parent)
	if err != nil || all {
		return items, err
	}
	kept := items[:0]
	for _, item := range items {
		if item.GetSession() == session {
			kept = append(kept, item)
		}
	}
	return kept, nil
}

func (s *dpuService) ListSockets(_ context.Context, req *adminv1.ListSocketsRequest) (*adminv1.ListSocketsResponse, error) {
	kept, err := ofSession(s.backend.sockets(), req.GetParent())
	if err != nil {
		return nil, err
	}
	if kept, err = keep(kept, req.GetFilter()); err != nil {
		return nil, err
	}
	items, next, err := paginate(kept, socketKey, req, req.GetParent(), defaultLargePage, maxLargePage)
	if err != nil {
		return nil, err
	}
	return &adminv1.ListSocketsResponse{Sockets: items, NextPageToken: next}, nil
}

func (s *dpuService) GetSocket(_ context.Context, req *adminv1.GetSocketRequest) (*adminv1.GetSocketResponse, error) {
	m, err := find(s.backend.sockets(), "socket", "sessions/7/sockets/0-80000001", req.GetName())
	if err != nil {
		return nil, err
	}
	return &adminv1.GetSocketResponse{Socket: m}, nil
}

func (s *dpuService) ListRings(_ context.Context, req *adminv1.ListRingsRequest) (*adminv1.ListRingsResponse, error) {
	kept, err := ofSession(s.backend.rings(), req.GetParent())
	if err != nil {
		return nil, err
	}
	if kept, err = keep(kept, req.GetFilter()); err != nil {
		return nil, err
	}
	items, next, err := paginate(kept, ringKey, req, req.GetParent(), defaultLargePage, maxLargePage)
	if err != nil {
		return nil, err
	}
	return &adminv1.ListRingsResponse{Rings: items, NextPageToken: next}, nil
}

func (s *dpuService) GetRing(_ context.Context, req *adminv1.GetRingRequest) (*adminv1.GetRingResponse, error) {
	m, err := find(s.backend.rings(), "ring pair", "sessions/7/rings/0-0", req.GetName())
	if err != nil {
		return nil, err
	}
	return &adminv1.GetRingResponse{Ring: m}, nil
}

func (s *dpuService) ListShards(_ context.Context, req *adminv1.ListShardsRequest) (*adminv1.ListShardsResponse, error) {
	kept, err := keep(s.backend.shards(), req.GetFilter())
	if err != nil {
		return nil, err
	}
	items, next, err := paginate(kept, shardKey, req, "", defaultPage, maxPage)
	if err != nil {
		return nil, err
	}
	return &adminv1.ListShardsResponse{Shards: items, NextPageToken: next}, nil
}

func (s *dpuService) GetShard(_ context.Context, req *adminv1.GetShardRequest) (*adminv1.GetShardResponse, error) {
	m, err := find(s.backend.shards(), "shard", "shards/0", req.GetName())
	if err != nil {
		return nil, err
	}
	return &adminv1.GetShardResponse{Shard: m}, nil
}

func (s *dpuService) ListLinks(_ context.Context, req *adminv1.ListLinksRequest) (*adminv1.ListLinksResponse, error) {
	links := s.backend.links()
	number := make(map[*adminv1.Link]uint64, len(links))
	for i, l := range links {
		number[l] = uint64(i)
	}
	kept, err := keep(links, req.GetFilter())
	if err != nil {
		return nil, err
	}
	items, next, err := paginate(kept, func(l *adminv1.Link) key { return key{number[l]} }, req, "", defaultPage, maxPage)
	if err != nil {
		return nil, err
	}
	return &adminv1.ListLinksResponse{Links: items, NextPageToken: next}, nil
}

func (s *dpuService) GetLink(_ context.Context, req *adminv1.GetLinkRequest) (*adminv1.GetLinkResponse, error) {
	m, err := find(s.backend.links(), "link", "links/0", req.GetName())
	if err != nil {
		return nil, err
	}
	return &adminv1.GetLinkResponse{Link: m}, nil
}

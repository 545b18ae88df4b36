// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"pno/crypto/audit"
	"pno/crypto/signing"
	cryptov1 "pno/proto/pno/crypto/v1"
)

// GetKey implements the service. A client that verifies signatures asks this
// first: what is refused here is an operation refused, and is counted and
// recorded as one. What is answered is public and leaves no record.
func (s *Server) GetKey(ctx context.Context, req *cryptov1.GetKeyRequest) (*cryptov1.GetKeyResponse, error) {
	st, err := s.open(ctx)
	if err != nil {
		return nil, err
	}
	arrived := time.Now()
	var id signing.KeyID
	resp, refused := s.getKey(st.client, req.KeyId, &id, arrived)
	if refused == nil {
		return resp, nil
	}
	s.metrics.count(refused.Status)
	now := time.Now()
	s.refuseClient(audit.Record{Time: now, Client: st.client, Key: id, Status: refused.Status, Micros: micros(now.Sub(arrived))}, "", "")
	code := codes.NotFound
	switch refused.Status {
	case signing.BadInput:
		code = codes.InvalidArgument
	case signing.Denied:
		code = codes.PermissionDenied
	case signing.RateLimited:
		code = codes.ResourceExhausted
	}
	return nil, status.Error(code, refused.Text)
}

func (s *Server) getKey(client string, key []byte, id *signing.KeyID, now time.Time) (*cryptov1.GetKeyResponse, *signing.Error) {
	if len(key) != len(id) {
		return nil, signing.Errorf(signing.BadInput, "a key id of %d bytes, want %d", len(key), len(id))
	}
	copy(id[:], key)
	if !s.lookups.take(client, now) {
		return nil, signing.Errorf(signing.RateLimited, "more than %d public keys a second", lookupRate)
	}
	k := s.lookup(*id)
	if k == nil {
		return nil, signing.Errorf(signing.UnknownKey, "no such key")
	}
	defer k.release()
	if !s.rules.Load().Grant(client, k.id, k.name).Any() {
		return nil, signing.Errorf(signing.Denied, "no access rule for this client and key")
	}
	return &cryptov1.GetKeyResponse{Spki: k.spki, Tls13Only: k.tls13Only}, nil
}

const (
	lookupRate    = 1000 // a second and client
	lookupBurst   = 4096 // as many keys as an agent may want after its start
	lookupClients = 4096 // that are remembered before those at rest are forgotten
)

// lookups bounds how often each client asks for public halves: no access rule
// does, as there may be none for the key. It keeps the time at which a client
// that asks at the rate would have come to where it is.
type lookups struct {
	mu  sync.Mutex
	due map[string]time.Time
}

func (l *lookups) take(client string, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.due) >= lookupClients {
		for c, due := range l.due {
			if due.Before(now) {
				delete(l.due, c)
			}
		}
	}
	due := l.due[client]
	if due.Before(now) {
		due = now
	}
	if due.Sub(now) >= lookupBurst*time.Second/lookupRate {
		return false
	}
	l.due[client] = due.Add(time.Second / lookupRate)
	return true
}

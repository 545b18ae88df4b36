// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"crypto"
	"crypto/x509"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"pno/crypto/signing"
	cryptov1 "pno/proto/pno/crypto/v1"
)

// publicKeys is what a cluster's client knows of keys by their id, to verify
// with, and what it asks right now: each is asked for once, however many
// operations want it, as after a start.
type publicKeys struct {
	mu    sync.Mutex
	known map[signing.KeyID]crypto.PublicKey
	asked map[signing.KeyID]*question
}

// question is answered when done is closed.
type question struct {
	done   chan struct{}
	public crypto.PublicKey
	err    *signing.Error
}

// Public asks the cluster for the public half of a key, once.
func (c *Cluster) Public(ctx context.Context, id signing.KeyID) (crypto.PublicKey, error) {
	q := c.question(id)
	select {
	case <-q.done:
	case <-ctx.Done():
		return nil, signing.Errorf(signing.DeadlineExceeded, "cluster %s: no public key in time", c.cfg.Name)
	}
	if q.err != nil {
		return nil, q.err
	}
	return q.public, nil
}

// public is Public of an operation, without an allocation when the key is known.
func (c *Cluster) public(id signing.KeyID, deadline time.Time) (crypto.PublicKey, *signing.Error) {
	c.keys.mu.Lock()
	known := c.keys.known[id]
	c.keys.mu.Unlock()
	if known != nil {
		return known, nil
	}
	ctx, cancel := context.WithDeadline(context.Background(), deadline)
	defer cancel()
	pub, err := c.Public(ctx, id)
	if err != nil {
		return nil, asError(err)
	}
	return pub, nil
}

// question finds an answer, or asks.
func (c *Cluster) question(id signing.KeyID) *question {
	k := &c.keys
	k.mu.Lock()
	defer k.mu.Unlock()
	if pub := k.known[id]; pub != nil {
		q := &question{done: make(chan struct{}), public: pub}
		close(q.done)
		return q
	}
	if q := k.asked[id]; q != nil {
		return q
	}
	q := &question{done: make(chan struct{})}
	if k.asked == nil {
		k.known, k.asked = map[signing.KeyID]crypto.PublicKey{}, map[signing.KeyID]*question{}
	}
	k.asked[id] = q
	go func() {
		q.public, q.err = c.ask(id)
		k.mu.Lock()
		delete(k.asked, id)
		if q.err == nil {
			k.known[id] = q.public
		}
		k.mu.Unlock()
		close(q.done)
	}()
	return q
}

// ask asks one worker after the other, the next one too when an answer is late.
func (c *Cluster) ask(id signing.KeyID) (crypto.PublicKey, *signing.Error) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	type reply struct {
		public crypto.PublicKey
		err    *signing.Error
	}
	replies := make(chan reply)
	last := signing.Errorf(signing.Unavailable, "cluster %s: no worker is reached", c.cfg.Name)
	var tried []*worker
	for open := 0; ; {
		var late <-chan time.Time
		if w := c.pick(tried, time.Now()); w != nil {
			tried = append(tried, w)
			open++
			late = time.After(hedgeMost)
			go func() {
				public, err := w.public(ctx, id)
				select {
				case replies <- reply{public, err}:
				case <-ctx.Done():
				}
			}()
		} else if open == 0 {
			return nil, last
		}
		select {
		case <-late:
		case r := <-replies:
			open--
			if r.err == nil || !askOn(r.err.Status) {
				return r.public, r.err
			}
			last = r.err
		}
	}
}

// askOn tells whether another worker may have a better answer about a key.
// Workers count for themselves how often they are asked.
func askOn(s signing.Status) bool {
	return s.Elsewhere() || slices.Contains([]signing.Status{signing.DeadlineExceeded, signing.RateLimited}, s)
}

// public asks this worker.
func (w *worker) public(ctx context.Context, id signing.KeyID) (crypto.PublicKey, *signing.Error) {
	ctx, cancel := context.WithTimeout(ctx, w.cluster.cfg.Stall)
	defer cancel()
	resp, err := cryptov1.NewCryptoServiceClient(w.conn).GetKey(ctx, &cryptov1.GetKeyRequest{KeyId: id[:]})
	if err != nil {
		if ctx.Err() == context.DeadlineExceeded {
			w.stalled()
		}
		return nil, statusError(err)
	}
	if signing.IDOf(resp.Spki) != id {
		return nil, signing.Errorf(signing.Internal, "worker %s sent the public half of another key", w.addr)
	}
	pub, err := x509.ParsePKIXPublicKey(resp.Spki)
	if err != nil {
		return nil, signing.Errorf(signing.Internal, "public key from worker %s: %v", w.addr, err)
	}
	return pub, nil
}

// statusError turns an error of a unary call into one of ours.
func statusError(err error) *signing.Error {
	to := signing.Unavailable
	switch status.Code(err) {
	case codes.NotFound:
		to = signing.UnknownKey
	case codes.PermissionDenied, codes.Unauthenticated:
		to = signing.Denied
	case codes.InvalidArgument:
		to = signing.BadInput
	case codes.ResourceExhausted:
		to = signing.RateLimited
	case codes.DeadlineExceeded:
		to = signing.DeadlineExceeded
	}
	return signing.Errorf(to, "%s", status.Convert(err).Message())
}

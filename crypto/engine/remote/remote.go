// SPDX-License-Identifier: Apache-2.0

// Package remote is the engine that is another cluster, so that workers nest:
// a rack's worker may pass on to the machines that have the cards. Private keys
// given to it are not used.
//
// A task has left its TLS context behind, so keys that the inner cluster holds
// to TLS 1.3 transcripts cannot be used through it.
//
// The engine owns its client, and a goroutine for each operation. Any goroutine
// may call its methods; see package engine for who owns what.
package remote

import (
	"crypto"
	"errors"
	"fmt"
	"sync"
	"time"

	"pno/crypto/client"
	"pno/crypto/engine"
	"pno/crypto/signing"
)

type remote struct {
	client   *client.Client
	sink     engine.Sink
	capacity int

	mu     sync.Mutex
	held   int
	closed bool
	open   sync.WaitGroup
}

type key struct {
	id     signing.KeyID
	public crypto.PublicKey
}

func (key) Close() {}

// New makes an engine of a client, which becomes its own, for as many
// operations at once as capacity says (0: 1024).
func New(c *client.Client, capacity int, sink engine.Sink) engine.Engine {
	if capacity == 0 {
		capacity = 1024
	}
	return &remote{client: c, sink: sink, capacity: capacity}
}

func (r *remote) Info() engine.Info {
	return engine.Info{Kind: "remote", Detail: fmt.Sprintf("%d tiers, %s first", len(r.client.Tiers()), r.client.Tiers()[0].Name()),
		Capacity: r.capacity, Window: window(r.capacity), Batch: 1}
}

// window is how many operations keep the inner cluster busy. It knows nothing of
// whose they are, so what waits for their turns must not all be there; but they
// are on the way for most of their time, so a few are not enough.
func window(capacity int) int { return max(min(capacity, 16), capacity/4) }

func (r *remote) Load(m engine.Material) (engine.Key, error) {
	if m.Public == nil {
		return nil, fmt.Errorf("load key %v: no public half: %w", m.ID, engine.ErrUnsupported)
	}
	return key{m.ID, m.Public}, nil
}

func (r *remote) Submit(ops []*engine.Op) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return 0
	}
	n := min(len(ops), r.capacity-r.held)
	r.held += n
	r.open.Add(n)
	for _, op := range ops[:n] {
		go r.do(op)
	}
	return n
}

func (r *remote) do(op *engine.Op) {
	defer r.open.Done()
	k := op.Key.(key)
	req := signing.Request{Key: k.id, Scheme: op.Task.Scheme, Input: signing.Digest, Data: op.Task.Data}
	switch {
	case op.Task.Decrypt:
		req.Input, req.Scheme = signing.TLS12Premaster, signing.Scheme(op.Task.Version)
	case op.Task.Scheme == signing.Ed25519:
		req.Input = signing.Message
	}
	start := time.Now()
	if !op.Deadline.IsZero() && start.After(op.Deadline) {
		op.Err = signing.Errorf(signing.DeadlineExceeded, "waited too long in the queue")
	} else {
		op.Started = start
		out, err := r.client.Do(op.Deadline, &client.Op{Request: req, Public: k.public, Next: op.Next})
		op.Out, op.Exec = out, time.Since(start)
		if err != nil {
			e, ok := errors.AsType[*signing.Error](err)
			if !ok {
				e = signing.Errorf(signing.Internal, "remote engine: %v", err)
			}
			op.Err = e
		}
	}
	r.mu.Lock()
	r.held--
	r.mu.Unlock()
	r.sink([]*engine.Op{op})
}

func (r *remote) Close() error {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.open.Wait()
	return r.client.Close()
}

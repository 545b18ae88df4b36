// SPDX-License-Identifier: Apache-2.0

package server

import (
	"crypto"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"pno/crypto/engine"
	"pno/crypto/keystore"
	"pno/crypto/signing"
)

// table is the keys in use; it is replaced whole.
type table struct {
	keys map[signing.KeyID]*key
}

// key is a key in every engine that computes with its type. The table holds one
// reference, each open operation another; the last wipes it.
type key struct {
	id        signing.KeyID
	name      string
	public    crypto.PublicKey
	spki      []byte
	tls13Only bool
	expires   time.Time
	loaded    []engine.Key // by engine, nil where it is not
	refs      atomic.Int64
	cost      atomic.Int64 // of an operation, in microseconds: a moving average
}

// learn notes how long an operation took. Two at once may lose one of them.
func (k *key) learn(took time.Duration) {
	now := k.cost.Load()
	k.cost.Store(now + (took.Microseconds()-now)/8)
}

// hold takes a reference, unless the key is gone already.
func (k *key) hold() bool {
	for {
		n := k.refs.Load()
		if n == 0 {
			return false
		}
		if k.refs.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (k *key) release() {
	if k.refs.Add(-1) > 0 {
		return
	}
	for _, e := range k.loaded {
		if e != nil {
			e.Close()
		}
	}
}

// lookup finds a key and takes a reference to it.
func (s *Server) lookup(id signing.KeyID) *key {
	k := s.table.Load().keys[id]
	if k == nil || !k.expires.IsZero() && time.Now().After(k.expires) || !k.hold() {
		return nil
	}
	return k
}

// Change counts what LoadKeys did.
type Change struct{ Added, Removed, Kept int }

// LoadKeys makes the keys in use those of the store. Keys that cannot be read
// are left out; one in use stays while its file is there but cannot be read,
// and goes with its file, whatever else is wrong with the store. The error
// joins the reasons.
func (s *Server) LoadKeys(store *keystore.Store) (Change, error) {
	s.loading.Lock()
	defer s.loading.Unlock()
	entries, errList := store.List()
	errs := []error{errList}
	listed := make(map[signing.KeyID]bool, len(entries))
	before, next := s.table.Load().keys, make(map[signing.KeyID]*key, len(entries))
	var c Change
	for _, e := range entries {
		listed[e.ID] = true
		if old := before[e.ID]; old != nil && old.name == e.Name && old.tls13Only == e.TLS13Only && old.expires.Equal(e.Expires) {
			next[e.ID] = old
			c.Kept++
			continue
		}
		k, err := s.load(store, e)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		next[e.ID] = k
		c.Added++
	}
	if errList != nil { // a file may be unreadable for a moment only
		for id, old := range before {
			if !listed[id] && !store.Gone(id) {
				next[id] = old
				c.Kept++
			}
		}
	}
	s.table.Store(&table{keys: next})
	for id, old := range before {
		if next[id] != old {
			old.release()
			c.Removed++
		}
	}
	s.metrics.keys.Set(float64(len(next)))
	s.metrics.badKeys.Set(float64(count(errors.Join(errs...))))
	if !s.draining.Load() {
		status := healthpb.HealthCheckResponse_SERVING
		if len(next) == 0 {
			status = healthpb.HealthCheckResponse_NOT_SERVING
		}
		s.health.SetServingStatus("", status)
	}
	return c, errors.Join(errs...)
}

// count is how many errors are joined in one.
func count(err error) int {
	if err == nil {
		return 0
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return 1
	}
	n := 0
	for _, e := range joined.Unwrap() {
		n += count(e)
	}
	return n
}

func (s *Server) load(store *keystore.Store, e *keystore.Entry) (*key, error) {
	secret, err := store.Unseal(e)
	if err != nil {
		return nil, err
	}
	defer secret.Close()
	k := &key{id: e.ID, name: e.Name, public: e.Public, spki: e.SPKI, tls13Only: e.TLS13Only, expires: e.Expires, loaded: make([]engine.Key, len(s.engines))}
	k.refs.Store(1)
	k.cost.Store(quantum)
	var errs []error
	some := false
	for i, eng := range s.engines {
		loaded, err := eng.Load(engine.Material{ID: e.ID, Public: e.Public, PKCS8: secret.Bytes()})
		if err != nil {
			errs = append(errs, err)
			continue
		}
		k.loaded[i], some = loaded, true
	}
	if !some {
		return nil, fmt.Errorf("no engine takes key %s: %w", e.Name, errors.Join(errs...))
	}
	return k, nil
}

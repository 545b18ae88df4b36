// SPDX-License-Identifier: Apache-2.0

package client

import (
	"sync"
	"time"

	"pno/crypto/engine"
	"pno/crypto/keystore"
	"pno/crypto/signing"
)

// Local is the last tier: sealed copies of keys on this machine, for the time
// that no worker is reached. A copy is opened when it is needed first, and wiped
// when it was not for a while.
type Local struct {
	store  *keystore.Store
	engine engine.Engine
	idle   time.Duration

	mu     sync.Mutex
	keys   map[signing.KeyID]*localKey
	users  sync.WaitGroup
	stop   chan struct{}
	done   chan struct{}
	closed bool
}

type localKey struct {
	entry *keystore.Entry
	key   engine.Key
	users int
	used  time.Time
}

// NewLocal makes a tier of a store, whose keys are loaded into the engine that
// open starts. Idle keys are wiped after idle.
func NewLocal(store *keystore.Store, idle time.Duration, open func(engine.Sink) (engine.Engine, error)) (*Local, error) {
	e, err := open(func(done []*engine.Op) {
		for _, op := range done {
			op.Owner.(chan struct{}) <- struct{}{}
		}
	})
	if err != nil {
		return nil, err
	}
	l := &Local{store: store, engine: e, idle: orDefault(idle, time.Minute), keys: map[signing.KeyID]*localKey{},
		stop: make(chan struct{}), done: make(chan struct{})}
	go l.sweep()
	return l, nil
}

// Name is what statistics call it.
func (l *Local) Name() string { return "local" }

func (l *Local) sweep() {
	defer close(l.done)
	tick := time.NewTicker(max(l.idle/4, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-l.stop:
			return
		case now := <-tick.C:
			l.mu.Lock()
			for id, k := range l.keys {
				if k.users == 0 && (now.Sub(k.used) > l.idle || k.entry.Expired(now)) {
					k.key.Close()
					delete(l.keys, id)
				}
			}
			l.mu.Unlock()
		}
	}
}

func (l *Local) hold(id signing.KeyID) (*localKey, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, signing.Errorf(signing.Unavailable, "closed")
	}
	k := l.keys[id]
	if k == nil {
		var err error
		if k, err = l.load(id); err != nil {
			return nil, err
		}
		l.keys[id] = k
	}
	if k.entry.Expired(time.Now()) {
		return nil, signing.Errorf(signing.Unavailable, "the sealed copy of key %s has expired", k.entry.Name)
	}
	k.users++
	l.users.Add(1)
	return k, nil
}

func (l *Local) load(id signing.KeyID) (*localKey, error) {
	e, err := l.store.Find(id.String())
	if err != nil {
		return nil, signing.Errorf(signing.UnknownKey, "no sealed copy")
	}
	secret, err := l.store.Unseal(e)
	if err != nil {
		return nil, signing.Errorf(signing.Unavailable, "%v", err)
	}
	defer secret.Close()
	key, err := l.engine.Load(engine.Material{ID: id, Public: e.Public, PKCS8: secret.Bytes()})
	if err != nil {
		return nil, signing.Errorf(signing.Internal, "%v", err)
	}
	return &localKey{entry: e, key: key}, nil
}

func (l *Local) release(k *localKey) {
	l.mu.Lock()
	k.users--
	k.used = time.Now()
	l.mu.Unlock()
	l.users.Done()
}

// Do implements Tier. It does not decrypt: what a cluster allows by its rules,
// there are no rules for here.
func (l *Local) Do(deadline time.Time, op *Op) ([]byte, error) {
	k, err := l.hold(op.Key)
	if err != nil {
		return nil, err
	}
	defer l.release(k)
	if op.Input == signing.TLS12Premaster {
		return nil, signing.Errorf(signing.Denied, "sealed copies do not decrypt")
	}
	task, err := signing.Prepare(&op.Request, k.entry.Public, k.entry.TLS13Only)
	if err != nil {
		return nil, err
	}
	done := make(chan struct{}, 1)
	o := &engine.Op{Key: k.key, Task: task, Deadline: deadline, Owner: done}
	if l.engine.Submit([]*engine.Op{o}) == 0 {
		return nil, signing.Errorf(signing.Overloaded, "the local engine is full")
	}
	<-done // the engine answers everything that it took
	switch {
	case o.Err != nil:
		return nil, o.Err
	case task.Scheme.RSA() && !l.engine.Info().Verifies && signing.Verify(k.entry.Public, &task, o.Out) != nil:
		return nil, signing.Errorf(signing.Internal, "the signature does not verify")
	}
	return o.Out, nil
}

// Close wipes the keys.
func (l *Local) Close() error {
	close(l.stop)
	<-l.done
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.users.Wait()
	for _, k := range l.keys { // nobody else has them any more
		k.key.Close()
	}
	clear(l.keys)
	return l.engine.Close()
}

// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"log/slog"
	"sync"
	"time"
)

// refusals tells of connections that are refused without filling the disk: the
// first ones have lines of their own, what follows one line an interval with their
// number, until there was none for as long.
type refusals struct {
	log   *slog.Logger
	every time.Duration

	mu    sync.Mutex
	told  int
	more  uint64
	timer *time.Timer // nil: there was none in the last interval
}

const (
	refusalsFirst = 16
	refusalsEvery = 10 * time.Second
)

func (r *refusals) tell(message string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.timer == nil {
		r.timer = time.AfterFunc(r.every, r.next)
	}
	if r.told >= refusalsFirst {
		r.more++
		return
	}
	r.told++
	r.log.Warn(message, args...)
}

// next ends an interval.
func (r *refusals) next() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.timer == nil {
		return // end was before
	}
	if r.more == 0 {
		r.told, r.timer = 0, nil
		return
	}
	r.sum()
	r.timer.Reset(r.every)
}

// sum tells what has no line yet. Locked.
func (r *refusals) sum() {
	if r.more > 0 {
		r.log.Warn("key agent refused more connections", "times", r.more)
		r.more = 0
	}
}

// end tells the rest.
func (r *refusals) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.timer != nil {
		r.timer.Stop()
		r.timer = nil
	}
	r.sum()
}

// SPDX-License-Identifier: Apache-2.0

package host

import (
	"log/slog"
	"sync"
	"time"
)

// Anybody who may connect can misbehave as fast as he likes. The log has to
// stay readable, and on the disk; the counters have every case.
const (
	warnWindow = 10 * time.Second
	warnBurst  = 10 // lines of one user in that time
)

// badPeers warns about those on the attach socket, not more than so much for
// each user, so that none can hide another's lines.
type badPeers struct {
	log *slog.Logger

	mu    sync.Mutex
	users map[int]*warnings
}

// warnings are one user's since begin.
type warnings struct {
	begin         time.Time
	lines, hidden int
}

func newBadPeers(log *slog.Logger) *badPeers { return &badPeers{log: log, users: map[int]*warnings{}} }

// warn logs a line about a user's process, or counts it with those that are
// not shown. The next one that is shown tells how many that were.
func (b *badPeers) warn(uid int, msg string, args ...any) {
	if hidden, ok := b.allow(uid, time.Now()); ok {
		if hidden > 0 {
			args = append(args, "not_shown_before", hidden)
		}
		b.log.Warn(msg, append([]any{"uid", uid}, args...)...)
	}
}

func (b *badPeers) allow(uid int, now time.Time) (hidden int, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	w := b.users[uid]
	if w == nil {
		for id, old := range b.users {
			if now.Sub(old.begin) > warnWindow && old.hidden == 0 {
				delete(b.users, id)
			}
		}
		w = &warnings{begin: now}
		b.users[uid] = w
	}
	if now.Sub(w.begin) >= warnWindow {
		hidden = w.hidden
		*w = warnings{begin: now}
	}
	if w.lines++; w.lines > warnBurst {
		w.hidden++
		return 0, false
	}
	return hidden, true
}

// SPDX-License-Identifier: Apache-2.0

package session

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"pno/dpu/netstack"
	"pno/dpu/rss"
	"pno/offload"
)

// Moderation bounds how an interrupt is put off: it is raised once MaxEvents
// records wait, or MaxDelay after the last one, whichever comes first; at
// once if the last one is longer ago than that.
type Moderation struct {
	MaxDelay  time.Duration
	MaxEvents int
}

// Defaults of Moderation.
const (
	DefaultMaxDelay  = 50 * time.Microsecond
	DefaultMaxEvents = 64
)

// Limits of one session on one shard.
const (
	maxSockets   = 1 << 20
	retainMax    = 16 << 10 // data announced with an unaccepted connection
	recordsATurn = 512      // of one queue pair, so that others get their turn
	bytesATurn   = 256 << 10
)

// Config is what a Table needs of its shard.
type Config struct {
	Shard      int
	Stack      *netstack.Stack
	RSS        *rss.Table
	Moderation Moderation
	Log        *slog.Logger
	// Wake is called from any goroutine when a socket became ready.
	Wake func()
	// Watch has a doorbell's descriptor wake the loop, Unwatch ends that.
	Watch   func(fd int, session uint64) error
	Unwatch func(fd int)
	// Ended is called by the loop when this shard ended a session by itself.
	Ended func(id uint64, reason string)
}

// Table is one shard's sessions. See the package comment for who may call.
type Table struct {
	Config
	sessions   map[uint64]*Session
	hot        []*queue // polled each turn
	spare      []*queue // the hot list's other buffer
	dirty      []*queue // to be flushed this turn
	ready      ready
	again      []*socket // sockets to be looked at in the next turn
	spareAgain []*socket
	corks      []*socket // corked connections that keep something back, by when it is due
	grants     map[Token]*grant
	orphans    map[*socket]struct{}
	owed       bool   // see Owed
	heard      uint64 // see Heard
	speaker    *queue // which a host has used last, see Speaking
	claims     uint64 // so far
	now        int64  // monotonic nanoseconds, set at the start of each turn
	held       int    // bytes on hold
	kept       keeper
	untold     []*socket // on hold, with something that the host is not told yet
	in         source
	blocks     []*block // free
	out        writer
	stats      counters
}

// Token identifies a fork.
type Token [16]byte

// ErrNoSession is returned for a session that is not open on this shard.
var ErrNoSession = errors.New("no such session")

// NewTable returns a shard's empty table.
func NewTable(c Config) *Table {
	if c.Moderation.MaxDelay == 0 {
		c.Moderation.MaxDelay = DefaultMaxDelay
	}
	if c.Moderation.MaxEvents == 0 {
		c.Moderation.MaxEvents = DefaultMaxEvents
	}
	return &Table{
		Config:   c,
		sessions: make(map[uint64]*Session),
		grants:   make(map[Token]*grant),
		orphans:  make(map[*socket]struct{}),
	}
}

// Session is one host process on one shard.
type Session struct {
	id      uint64
	l       offload.Layout
	t       *dma
	proc    offload.Process
	opened  time.Time
	queues  [offload.MaxChannels]*queue
	handles handles
	dead    bool
	hot     int // queue pairs in the table's hot list
	grants  int // forks whose child has not come
	parks   int // connections kept under a token
	stats   counters
}

// Open adds a session; l must have passed Check. The table owns t from here,
// also when Open fails.
func (t *Table) Open(id uint64, l offload.Layout, tr offload.Transport, p offload.Process) error {
	if t.sessions[id] != nil {
		_ = tr.Close()
		return fmt.Errorf("session %d is open already", id)
	}
	if err := t.Watch(tr.DoorbellFD(), id); err != nil {
		_ = tr.Close()
		return fmt.Errorf("open session %d: %w", id, err)
	}
	t.sessions[id] = &Session{id: id, l: l, t: &dma{Transport: tr, c: &t.stats}, proc: p, opened: time.Now()}
	return nil
}

// OpenChannel starts serving a channel of a session.
func (t *Table) OpenChannel(id uint64, channel int) error {
	s := t.sessions[id]
	if s == nil {
		return fmt.Errorf("open channel %d of session %d: %w", channel, id, ErrNoSession)
	}
	if channel < 0 || channel >= s.l.Channels {
		return fmt.Errorf("open channel %d of session %d, which has %d", channel, id, s.l.Channels)
	}
	if s.queues[channel] == nil {
		q := &queue{s: s, qp: offload.NewDevQP(s.t, s.l, channel, t.Shard), channel: channel}
		s.queues[channel] = q
		t.heat(q)
	}
	return nil
}

// Drain executes what the session's process has written, and reports whether
// there may be more: records in its rings, or some that cannot be executed yet.
// A process that writes its last words, closes and exits has them sent, as the
// kernel would.
func (t *Table) Drain(id uint64) (more bool) {
	s := t.sessions[id]
	if s == nil {
		return false
	}
	for _, q := range s.queues {
		if q == nil {
			continue
		}
		for !s.dead && t.pump(q) {
			more = true
		}
		if s.dead {
			return false
		}
		more = more || q.held != nil || q.qp.Pending()
	}
	return more
}

// Close ends a session: every socket is released as if the process had closed
// it, and then the transport.
func (t *Table) Close(id uint64) error {
	s := t.sessions[id]
	if s == nil {
		return fmt.Errorf("close session %d: %w", id, ErrNoSession)
	}
	t.end(s)
	return nil
}

// end takes a session down. Queue pairs that the loop still has in its lists
// are recognised by dead.
func (t *Table) end(s *Session) {
	if s.dead {
		return
	}
	s.dead = true
	delete(t.sessions, s.id)
	s.handles.each(func(h *hold) { t.release(h, closeDeath) })
	t.Unwatch(s.t.DoorbellFD())
	if err := s.t.Close(); err != nil {
		t.Log.Warn("close transport", "session", s.id, "shard", t.Shard, "err", err)
	}
}

// fail ends a session that broke the protocol or whose transport failed.
func (t *Table) fail(s *Session, err error) {
	if s.dead {
		return
	}
	if errors.Is(err, offload.ErrProtocol) {
		t.stats.violations++
	}
	t.end(s)
	t.Ended(s.id, err.Error())
}

// Sessions is the number of open sessions.
func (t *Table) Sessions() int { return len(t.sessions) }

// Doorbell tells that a session's doorbell rang: all its queue pairs of this
// shard are looked at.
func (t *Table) Doorbell(id uint64) {
	s := t.sessions[id]
	if s == nil {
		return
	}
	s.t.DoorbellAck()
	s.stats.doorbells++
	t.stats.doorbells++
	for _, q := range s.queues {
		if q == nil {
			continue
		}
		// Its control line may have been read before the host rang, and there
		// will be no second ring for this request: it must be armed and read
		// anew before the loop may take it for quiet.
		q.qp.DisarmDoorbell()
		t.heat(q)
	}
}

// CloseAll ends every session and grant.
func (t *Table) CloseAll() {
	for _, s := range t.sessions {
		t.end(s)
	}
	for tok := range t.grants {
		t.Drop(tok)
	}
}

// Ready tells whether a socket has news that Turn has not looked at.
func (t *Table) Ready() bool { return !t.ready.empty() }

// Owed tells whether a host may be about to say something: none has since one
// was last sent something.
func (t *Table) Owed() bool { return t.owed }

// Heard counts the bytes of records that hosts have sent.
func (t *Table) Heard() uint64 { return t.heard }

// Speaking tells whether the host that was heard last may be about to go on: it
// has said more than was listened to, or is awake and has more to answer.
func (t *Table) Speaking() bool {
	return t.Awake() && (t.speaker.asked > 0 || t.speaker.qp.Pending())
}

// Awake tells whether the host that was heard last looks at its ring by itself.
func (t *Table) Awake() bool {
	q := t.speaker
	if q != nil && q.s.dead {
		t.speaker, q = nil, nil
	}
	return q != nil && (q.qp.Pending() || !q.qp.Asleep())
}

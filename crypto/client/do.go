// SPDX-License-Identifier: Apache-2.0

package client

import (
	"errors"
	"time"

	"pno/crypto/signing"
)

// try is one operation on its way. It is used again for another when no attempt
// of it can be answered any more.
type try struct {
	c        *Cluster
	op       *Op
	task     signing.Task // to verify with
	verify   bool
	deadline time.Time
	start    time.Time

	answers chan answer
	alarm   *alarm // for when the answer is late
	tried   []*worker
	sent    int
	rounds  int // that had tried every worker
	open    int
	hedged  bool
	last    *signing.Error
}

// Do has an operation done by the deadline.
func (c *Cluster) Do(deadline time.Time, op *Op) ([]byte, error) {
	t, ok := c.tries.Get().(*try)
	if !ok {
		t = &try{answers: make(chan answer, max(c.cfg.Attempts, mostAttempts)), alarm: &alarm{late: make(chan struct{}, 1)}}
	}
	*t = try{c: c, op: op, deadline: deadline, start: time.Now(), answers: t.answers, alarm: t.alarm, tried: t.tried[:0]}
	c.stats.operations.Add(1)
	out, err := t.run()
	c.alarms.clear(t.alarm)
	if t.open == 0 {
		t.op = nil
		c.tries.Put(t)
	}
	if err != nil {
		c.stats.failures.Add(1)
		return nil, err
	}
	return out, nil
}

// prepare makes what is needed to verify, which checks the request as well.
func (t *try) prepare() *signing.Error {
	pub := t.op.Public
	for pause := time.Millisecond; pub == nil && t.c.verifies(t.op); pause = min(2*pause, pauseRound) {
		pub, t.last = t.c.public(t.op.Key, t.deadline)
		if t.last == nil {
			break
		}
		gone := t.last.Status == signing.Unavailable || t.last.Status == signing.DeadlineExceeded
		if !gone || t.next() || !t.again(pause) {
			return t.last
		}
	}
	if pub == nil {
		return nil
	}
	task, err := signing.Prepare(&t.op.Request, pub, false)
	if err != nil {
		return asError(err)
	}
	t.task, t.verify, t.op.Public = task, t.c.verifies(t.op), pub
	return nil
}

func asError(err error) *signing.Error {
	if e, ok := errors.AsType[*signing.Error](err); ok {
		return e
	}
	return signing.Errorf(signing.StatusOf(err), "%v", err)
}

func (t *try) run() ([]byte, error) {
	if !t.c.ready(t.c.patience(t.op, t.start, t.deadline)) {
		return nil, signing.Errorf(signing.Unavailable, "cluster %s: no worker is connected", t.c.cfg.Name)
	}
	if err := t.prepare(); err != nil {
		return nil, err
	}
	t.c.budget.earn()
	if !t.send(time.Now()) {
		return nil, t.failure()
	}
	t.c.alarms.set(t.alarm, t.due())
	for {
		select {
		case a := <-t.answers:
			t.open--
			if out, done := t.take(a); done {
				return out, nil
			}
			if t.final() {
				return nil, t.last
			}
			if t.repeat(a) {
				continue
			}
			if t.open == 0 {
				return nil, t.failure()
			}
		case <-t.alarm.late:
			if !time.Now().Before(t.deadline) {
				return nil, signing.Errorf(signing.DeadlineExceeded, "cluster %s: no answer in %v", t.c.cfg.Name, time.Since(t.start).Round(time.Millisecond))
			}
			t.hedge()
			t.c.alarms.set(t.alarm, time.Now().Add(t.nextHedge()))
		}
	}
}

// final tells whether the last answer ends it: another worker would say the same.
// A worker that had no time for the operation, while there is some, is not that.
func (t *try) final() bool {
	if t.last == nil || t.last.Status.Elsewhere() {
		return false
	}
	return t.last.Status != signing.DeadlineExceeded || !time.Now().Before(t.deadline)
}

// due is when to look after the operation: when another worker should be asked as
// well, if there is one.
func (t *try) due() time.Time {
	if len(*t.c.workers.Load()) < 2 {
		return t.start.Add(t.nextHedge())
	}
	late := t.c.cfg.HedgeAfter
	if late == 0 {
		late = t.c.pace.late()
	}
	if hedge := t.start.Add(late); hedge.Before(t.deadline) {
		return hedge
	}
	return t.deadline
}

// next tells whether there is somewhere else to have it done.
func (t *try) next() bool { return t.op.Next || t.c.next.Load() }

// failure is what to say when nothing more is tried.
func (t *try) failure() *signing.Error {
	if t.last != nil {
		return t.last
	}
	return signing.Errorf(signing.Overloaded, "cluster %s: every worker is busy", t.c.cfg.Name)
}

// pauseRound is the longest pause before all workers are tried anew.
const pauseRound = 50 * time.Millisecond

// attempts is how many workers one operation may be sent to: enough that one good
// one among them is found.
func (c *Cluster) attempts() int {
	if c.cfg.Attempts > 0 {
		return c.cfg.Attempts
	}
	return min(max(leastAttempts, len(*c.workers.Load())+1), mostAttempts)
}

// send asks one more worker. When all were tried, it begins anew after a moment:
// some times while there is another tier, or else as long as there is time.
func (t *try) send(now time.Time) bool {
	pause := time.Millisecond
	for ; t.sent < t.c.attempts(); now = time.Now() {
		left := t.deadline.Sub(now)
		if left <= 0 {
			return false
		}
		w := t.c.pick(t.tried, now)
		if w == nil {
			if t.open > 0 || t.rounds >= leastAttempts && t.next() || !t.again(pause) {
				return false
			}
			t.rounds++
			t.tried, pause = t.tried[:0], min(2*pause, pauseRound)
			continue
		}
		t.tried = append(t.tried, w)
		if w.send(t.op, left, t.answers, now) {
			t.sent++
			t.open++
			return true
		}
	}
	return false
}

// again waits before a second round, if the workers may be better by then.
func (t *try) again(pause time.Duration) bool {
	if t.last != nil && t.last.Status == signing.UnknownKey {
		return false
	}
	time.Sleep(min(pause, time.Until(t.deadline)))
	return time.Now().Before(t.deadline) && t.c.ready(t.c.patience(t.op, time.Now(), t.deadline))
}

// take judges an answer.
func (t *try) take(a answer) (out []byte, done bool) {
	st := &t.c.stats
	switch {
	case a.broken:
		st.broken.Add(1)
		t.last = signing.Errorf(signing.Unavailable, "worker %s: %s", a.w.addr, a.text)
	case a.status != signing.OK:
		t.last = signing.Errorf(a.status, "worker %s: %s", a.w.addr, a.text)
		if a.status == signing.Internal {
			a.w.bad()
		} else if !a.status.Elsewhere() {
			a.w.breaker.good()
		}
	case t.verify && signing.Verify(t.op.Public, &t.task, a.data) != nil:
		st.wrong.Add(1)
		a.w.breaker.trip(time.Now(), t.c.cfg.Eject)
		t.c.cfg.Log.Error("worker is kept out: its signature does not verify", "worker", a.w.addr, "key", t.op.Key.String(), "scheme", t.op.Scheme.String())
		t.last = signing.Errorf(signing.Internal, "worker %s: its signature does not verify", a.w.addr)
	default:
		a.w.breaker.good()
		// What was waited for another worker in vain says nothing about this one, and
		// would have the next hedge wait longer.
		t.c.pace.learn(a.took)
		if t.hedged && len(t.tried) > 1 && a.w != t.tried[0] {
			st.hedgeWins.Add(1)
		}
		t.op.Exec = a.exec
		return a.data, true
	}
	return nil, false
}

// repeat asks another worker after a bad answer. What breaks with a stream, or was
// under way when its worker began to be kept out, costs nothing of the budget the
// first time at that worker: however much it is, it cannot go on, and that worker
// does none of it any more.
func (t *try) repeat(a answer) bool {
	free := t.rounds == 0 && (a.broken || a.w.breaker.openedAfter(a.sent))
	if !free && !t.c.budget.spend(time.Now()) {
		t.c.stats.overBudget.Add(1)
		return false
	}
	if !t.send(time.Now()) {
		return false
	}
	t.c.stats.retries.Add(1)
	return true
}

// hedge asks one more worker, because the answer is late.
func (t *try) hedge() {
	now := time.Now()
	if t.hedged || t.c.pick(t.tried, now) == nil {
		return
	}
	if !t.c.budget.spend(now) {
		t.c.stats.overBudget.Add(1)
		return
	}
	if t.hedged = t.send(now); t.hedged {
		t.c.stats.hedges.Add(1)
	}
}

// nextHedge is when to look again: there may be another worker by then, or
// something in the budget.
func (t *try) nextHedge() time.Duration {
	left := time.Until(t.deadline)
	if t.hedged {
		return left
	}
	return min(left, max(left/2, hedgeFirst))
}

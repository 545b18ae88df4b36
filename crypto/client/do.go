// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"pno/crypto/signing"
)

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

// try is one operation on its way. It is used again for another when no attempt
// of it can be answered any more.
type try struct {
	c        *Cluster
	timer    *time.Timer // stopped between operations
	op       *Op
	task     signing.Task // to verify with
	verify   bool
	deadline time.Time
	start    time.Time

	answers chan answer
	tried   []*worker
	sent    int
	rounds  int // that had tried every worker
	open    int
	hedged  bool
	free    bool // the failover that a broken stream grants is used up
	last    *signing.Error
}

// Do has an operation done by the deadline.
func (c *Cluster) Do(deadline time.Time, op *Op) ([]byte, error) {
	t, ok := c.tries.Get().(*try)
	if !ok {
		t = &try{timer: time.NewTimer(time.Hour), answers: make(chan answer, c.cfg.Attempts)}
	}
	*t = try{c: c, timer: t.timer, op: op, deadline: deadline, start: time.Now(), answers: t.answers, tried: t.tried[:0]}
	c.stats.operations.Add(1)
	out, err := t.run()
	t.timer.Stop()
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
	if pub == nil && t.c.verifies(t.op) {
		ctx, cancel := context.WithDeadline(context.Background(), t.deadline)
		defer cancel()
		got, err := t.c.Public(ctx, t.op.Key)
		if err != nil {
			return asError(err)
		}
		pub = got
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
	if !t.c.ready(t.c.patience(t.start, t.deadline)) {
		return nil, signing.Errorf(signing.Unavailable, "cluster %s: no worker is connected", t.c.cfg.Name)
	}
	if err := t.prepare(); err != nil {
		return nil, err
	}
	t.c.budget.earn()
	if !t.send(t.start) {
		return nil, t.failure()
	}
	late := t.c.cfg.HedgeAfter
	if late == 0 {
		late = t.c.pace.late()
	}
	t.timer.Reset(min(late, t.deadline.Sub(t.start)))
	for {
		select {
		case a := <-t.answers:
			t.open--
			if out, done := t.take(a); done {
				return out, nil
			}
			if t.last != nil && !t.last.Status.Elsewhere() {
				return nil, t.last
			}
			if t.repeat(a) {
				continue
			}
			if t.open == 0 {
				return nil, t.failure()
			}
		case <-t.timer.C:
			if !time.Now().Before(t.deadline) {
				return nil, signing.Errorf(signing.DeadlineExceeded, "cluster %s: no answer in %v", t.c.cfg.Name, time.Since(t.start).Round(time.Millisecond))
			}
			t.hedge()
			t.timer.Reset(time.Until(t.deadline))
		}
	}
}

// failure is what to say when nothing more is tried.
func (t *try) failure() *signing.Error {
	if t.last != nil {
		return t.last
	}
	return signing.Errorf(signing.Overloaded, "cluster %s: every worker is busy", t.c.cfg.Name)
}

// send asks one more worker. When all were tried, it begins anew after a moment.
func (t *try) send(now time.Time) bool {
	pause := time.Millisecond
	for ; t.sent < t.c.cfg.Attempts; now = time.Now() {
		left := t.deadline.Sub(now)
		if left <= 0 {
			return false
		}
		w := t.c.pick(t.tried, now)
		if w == nil {
			if t.rounds++; t.open > 0 || t.rounds > t.c.cfg.Attempts || !t.again(pause) {
				return false
			}
			t.tried, pause = t.tried[:0], 2*pause
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
	until := time.Now().Add(min(pause, time.Until(t.deadline)))
	time.Sleep(time.Until(until))
	return t.c.ready(t.c.patience(time.Now(), t.deadline))
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

// repeat asks another worker after a bad answer. The first broken stream costs
// nothing of the budget: it is not the operation's fault, and cannot multiply.
func (t *try) repeat(a answer) bool {
	if a.broken && !t.free {
		t.free = true
	} else if !t.c.budget.spend(time.Now()) {
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
	t.hedged = true
	if !t.c.budget.spend(now) {
		t.c.stats.overBudget.Add(1)
		return
	}
	if t.send(now) {
		t.c.stats.hedges.Add(1)
	}
}

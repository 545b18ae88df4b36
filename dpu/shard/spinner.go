// SPDX-License-Identifier: Apache-2.0

package shard

// A wait is polled through, rather than slept through, if that is the cheaper
// way: if what is waited for comes about as soon as falling asleep and waking
// up would take. Whether it does, the last waits of its kind tell.

// spinner is for waits of one kind. Its budget is twice what successes lately
// took. Failures halve it until there is none, so that polling for what takes
// long costs nothing but an attempt now and then, which may take longest.
type spinner struct {
	most   int64 // nanoseconds
	budget int64
	rest   int // waits since the last attempt
	doubts int // see overslept
}

const (
	leastSpin  = 1_000 // a shorter attempt sees nothing
	spinsAgain = 64    // waits after which an attempt is made again
	doubtsMost = 4
)

// next is how long the next wait may poll.
func (s *spinner) next() int64 {
	if s.budget >= leastSpin {
		return s.budget
	}
	if s.rest++; s.rest < spinsAgain {
		return 0
	}
	s.rest = 0
	return s.most
}

// hit takes a success into account: at once what it took more than before, and
// in steps what it took less.
func (s *spinner) hit(took int64) {
	s.budget = max(min(2*took+leastSpin, s.most), s.budget-s.budget/8)
}

// miss takes a failure into account.
func (s *spinner) miss() { s.budget /= 2 }

// overslept takes a wait into account that polling for took would have ended, by
// what it seems, but not polling for limit, as was done. Who wakes up faster than it
// seems has that wrong: where the longest attempts fail and the sleeps after them
// seem short, one is believed no more until polling succeeds.
func (s *spinner) overslept(took, limit int64) {
	if limit >= s.most {
		s.doubts++
	}
	if limit >= s.most || s.doubts >= doubtsMost {
		s.miss()
	} else {
		s.hit(max(took, limit))
	}
}

// idler decides whether the idle loop polls on or sleeps.
//
// It tells two kinds of waits apart, for they take turns and differ: the next
// frame comes when it comes, but a host that was just given something to do
// answers soon. There, polling saves the host a doorbell as well, hence its
// share of the costs: it may last twice as long.
//
// A sleep tells how long the wait was, too: without falling asleep and waking
// up, which take about as long as polling for a frame may. If polling would
// have found it, the next wait polls as long; else one late answer would have
// the next ones slept for, since each attempt would be too short.
type idler struct {
	frame, answer spinner
	wait          *spinner // the kind of the wait under way, nil if there is none
	since, limit  int64
}

func newIdler(most int64) idler {
	return idler{frame: spinner{most: most}, answer: spinner{most: 2 * most}}
}

// polls reports whether the loop, which has found nothing to do, looks again.
// owed: a host may be about to answer.
func (i *idler) polls(now int64, owed bool) bool {
	if i.wait == nil {
		i.wait, i.since = &i.frame, now
		if owed {
			i.wait = &i.answer
		}
		i.limit = i.wait.next()
	}
	return now-i.since < i.limit
}

// found notes that there is work.
func (i *idler) found(now int64) {
	if i.wait != nil && i.limit > 0 {
		i.wait.doubts = 0
		i.wait.hit(now - i.since)
	}
	i.wait = nil
}

// slept notes that a sleep has ended the wait.
func (i *idler) slept(now int64) {
	if i.wait != nil {
		if took := now - i.since - i.frame.most; took <= i.wait.most {
			i.wait.overslept(took, i.limit)
		} else if i.limit > 0 {
			i.wait.miss()
		}
	}
	i.wait = nil
}

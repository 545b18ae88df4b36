// SPDX-License-Identifier: Apache-2.0

package shard

import "testing"

// wakes is how long it takes to fall asleep and wake up, by what the idler thinks.
const wakes = 20_000

// wait plays one wait: what is waited for comes after the given time. It
// returns how long the loop polled, and whether it found it so.
func wait(i *idler, owed bool, after int64) (polled int64, found bool) {
	return waitOn(i, owed, after, wakes)
}

// waitOn is wait where falling asleep and waking up takes wakes.
func waitOn(i *idler, owed bool, after, wakes int64) (polled int64, found bool) {
	for now := int64(0); i.polls(now, owed); now += 100 {
		if now >= after {
			i.found(now)
			return now, true
		}
		polled = now + 100
	}
	i.slept(after + wakes)
	return polled, false
}

func TestIdlerPollsForWhatComesSoon(t *testing.T) {
	i := newIdler(20_000)
	for range spinsAgain {
		wait(&i, false, 15_000)
	}
	for range 100 {
		if _, found := wait(&i, false, 15_000); !found {
			t.Fatal("slept for less than polling may take")
		}
	}
}

// A host's answer may take twice as long, and what comes late of one kind does
// not spoil polling for the other.
func TestIdlerTellsFramesFromAnswers(t *testing.T) {
	i := newIdler(20_000)
	frames, answers := int64(0), 0
	for n := range 10 * spinsAgain {
		polled, _ := wait(&i, false, 100_000)
		_, found := wait(&i, true, 30_000)
		if n < 2*spinsAgain {
			continue
		}
		frames += polled
		if found {
			answers++
		}
	}
	if answers != 8*spinsAgain {
		t.Errorf("%d of %d answers were polled for", answers, 8*spinsAgain)
	}
	if most := int64(8 * 20_000); frames > most {
		t.Errorf("polled %d ns for frames that come late, want no more than %d", frames, most)
	}
}

// What comes at once is not polled for long when it does not come.
func TestIdlerPollsNoLongerThanItTakes(t *testing.T) {
	i := newIdler(20_000)
	for range 2 * spinsAgain {
		wait(&i, true, 2_000)
	}
	if polled, _ := wait(&i, true, 1_000_000); polled > 6_000 {
		t.Errorf("polled %d ns for what takes 2000", polled)
	}
	for range 2 * spinsAgain {
		wait(&i, true, 30_000)
	}
	if polled, found := wait(&i, true, 30_000); !found {
		t.Errorf("slept after %d ns for what takes 30,000 now", polled)
	}
}

// What never comes soon costs one attempt in spinsAgain waits, also after it
// has come soon for long.
func TestIdlerGivesUp(t *testing.T) {
	i := newIdler(20_000)
	for range 2 * spinsAgain {
		wait(&i, true, 1_000)
	}
	var last int64
	for range 10 * spinsAgain {
		polled, _ := wait(&i, true, 1_000_000)
		last += polled
	}
	if most := int64(2*40_000 + 10*40_000); last > most || last == 0 {
		t.Errorf("polled %d ns, want some, and no more than %d", last, most)
	}
}

// One answer that comes late, and is slept for, does not have those slept for
// that come in time again.
func TestIdlerPollsOnAfterALateAnswer(t *testing.T) {
	i := newIdler(20_000)
	for range 2 * spinsAgain {
		wait(&i, true, 25_000)
	}
	for range 10 {
		if _, found := wait(&i, true, 60_000); found {
			t.Fatal("polled for longer than it may")
		}
	}
	if _, found := wait(&i, true, 25_000); found {
		t.Fatal("ten late answers have changed nothing")
	}
	if polled, found := wait(&i, true, 25_000); !found {
		t.Errorf("slept after %d ns for what takes 25,000, like the one before", polled)
	}
}

// Where waking up is quick, a sleep seems to be one that polling would have spared.
// What comes after the longest attempt must not be polled for again and again.
func TestIdlerBelievesNoQuickSleeps(t *testing.T) {
	const waits = 20 * spinsAgain
	for _, after := range []int64{21_000, 25_000, 30_000, 34_000, 39_000} {
		i := newIdler(20_000)
		polled := int64(0)
		for range waits {
			n, _ := waitOn(&i, false, after, 1_000)
			polled += n
		}
		if most := int64(waits / spinsAgain * 2 * 20_000); polled > most {
			t.Errorf("polled %d ns in %d waits of %d ns for nothing, want %d at most", polled, waits, after, most)
		}
		for range spinsAgain {
			waitOn(&i, false, 15_000, 1_000)
		}
		if _, found := waitOn(&i, false, 15_000, 1_000); !found {
			t.Errorf("slept for what comes soon again, after waits of %d ns", after)
		}
	}
}

// A few that come just too late, among others, change nothing.
func TestIdlerPollsOnBesideQuickSleeps(t *testing.T) {
	i := newIdler(20_000)
	missed := 0
	for n := range 20 * spinsAgain {
		after := int64(15_000)
		if n%7 == 0 {
			after = 22_000
		}
		if _, found := waitOn(&i, false, after, 1_000); !found && after == 15_000 && n > 2*spinsAgain {
			missed++
		}
	}
	if most := 20 * spinsAgain / 7; missed > most {
		t.Errorf("%d waits for what comes soon were slept through, want %d at most", missed, most)
	}
}

// SPDX-License-Identifier: Apache-2.0

package pcie

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pno/offload"
)

// added is what the model's own arithmetic says a request takes whose ends cost
// nothing, if the next one is put into the ring the moment its answer is there.
// Three reads follow each other, which hide the write of the answer: the DPU
// reads the control line when it has the request, and this read is past the
// host before the answer is; the next one tells of the next request; then that
// is read. Each crosses at the link's bandwidth first.
func added(p Profile, n int) time.Duration {
	cross := func(bytes int) time.Duration { return time.Duration(transferTime(bytes, p.ReadBandwidth)) }
	line := cross(offload.CacheLine) + p.ReadLatency
	return line + line + cross(int(offload.RecordSpace(n))) + p.ReadLatency
}

// TestAddedLatency sends requests across the link and back, through the rings
// that the DPU and the hosts use, and holds the time to the model's arithmetic:
// by the model's clock, and by the real one with what both ends really cost.
func TestAddedLatency(t *testing.T) {
	p, err := ByName("bluefield3")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{48, 4080, 16368} { // whole numbers of records fill the ring
		t.Run(fmt.Sprintf("%d bytes", n), func(t *testing.T) {
			want := added(p, n)
			now := int64(1)
			got, err := newRig(t, newBus(p, func() int64 { return now })).roundTrips(n, 100, &now)
			if err != nil {
				t.Fatal(err)
			}
			if !near(got, want, 0.01) {
				t.Errorf("by the model's clock a request takes %v, want %v", got, want)
			}
			if n > 4080 {
				return // the copies of the ends themselves take a tenth of it
			}
			bare, err := newRig(t, NewBus(Profile{})).roundTrips(n, 2000, nil)
			if err != nil {
				t.Fatal(err)
			}
			if bare > want/4 {
				t.Skipf("the ends themselves take %v of %v here, as under the race detector: by the model's clock only", bare, want)
			}
			r := newRig(t, NewBus(p))
			for try := 1; ; try++ {
				// A median of many: who else runs on the machine takes it away
				// for far longer than a request lasts.
				got, err := r.roundTrips(n, 2000, nil)
				if err != nil {
					t.Fatal(err)
				}
				t.Logf("the real clock: %v, want %v", got, want)
				if near(got, want, 0.1) {
					return
				}
				if try == 10 {
					t.Fatalf("the profile adds %v to a request, want %v", got, want)
				}
			}
		})
	}
}

func near(got, want time.Duration, by float64) bool {
	return max(got-want, want-got) <= time.Duration(by*float64(want))
}

// roundTrips echoes count records of n bytes, one after the other, both sides
// in this loop, and returns the median time. now is the model's clock, which
// jumps to what is due; without it, the real one passes.
func (r *rig) roundTrips(n, count int, now *int64) (time.Duration, error) {
	begin := time.Now()
	clock := func() int64 { return int64(time.Since(begin)) }
	if now != nil {
		clock = func() int64 { return *now }
	}
	times := make([]time.Duration, 0, count)
	for len(times) < count {
		r.host.Emit(offload.OpSend, 0, 1, 0, 0, n)
		r.host.Publish()
		asked := clock()
		for {
			wait := r.link.Poll()
			rec, payload, ok, err := r.host.Next()
			if err != nil {
				return 0, err
			}
			if ok {
				if len(payload) != n {
					return 0, fmt.Errorf("record %d of %d bytes, want %d", rec.Seq, len(payload), n)
				}
				r.host.Release()
				break
			}
			moved, err := r.echoOne()
			if err != nil {
				return 0, err
			}
			if now != nil && !moved {
				*now += max(wait, 1)
			}
		}
		times = append(times, time.Duration(clock()-asked))
	}
	slices.Sort(times)
	return times[len(times)/2], nil
}

// echoOne is a turn of a DPU that never sleeps.
func (r *rig) echoOne() (moved bool, err error) {
	if err := r.dev.Pump(); err != nil {
		return false, err
	}
	rec, payload, ok, err := r.dev.Next()
	if err != nil || !ok {
		return false, err
	}
	copy(r.dev.Emit(offload.OpData, 0, rec.Sock, rec.Seq, 0, len(payload)), payload)
	if err := r.dev.Flush(); err != nil {
		return true, err
	}
	return true, r.dev.Pump()
}

// SPDX-License-Identifier: Apache-2.0

package netstack

import (
	"testing"
	"time"
)

func TestClockIsHeldForATurn(t *testing.T) {
	s, err := New(Options{Loopback: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.HoldClock()
	first := s.Clock().NowMonotonic()
	time.Sleep(5 * time.Millisecond)
	if d := s.Clock().NowMonotonic().Sub(first); d != 0 {
		t.Errorf("the held clock went on by %v", d)
	}
	s.ReleaseClock()
	if d := s.Clock().NowMonotonic().Sub(first); d < 5*time.Millisecond {
		t.Errorf("the released clock is %v behind", 5*time.Millisecond-d)
	}
	fired := make(chan struct{})
	s.HoldClock()
	s.Clock().AfterFunc(time.Millisecond, func() { close(fired) })
	<-fired // timers run all the same
}

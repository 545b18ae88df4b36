// SPDX-License-Identifier: Apache-2.0

package session

import (
	"syscall"

	"pno/offload"
)

// TCP_CORK. The stack keeps the end of what was written back until the cork is
// pulled, for ever if need be; Linux sends it after 200 ms.

// corkFor is how long a corked connection keeps something back, in nanoseconds.
const corkFor = 200e6

// noteCork takes in that the host has set an option.
func (s *socket) noteCork(o offload.OptVal) {
	if o.Level == syscall.IPPROTO_TCP && o.Name == syscall.TCP_CORK {
		s.corked = o.Val[0]|o.Val[1]|o.Val[2]|o.Val[3] != 0
	}
}

// corkedWrite has a corked connection looked at when the time is over.
func (t *Table) corkedWrite(s *socket) {
	if s.corked && s.uncork == 0 {
		s.uncork = t.now + corkFor
		t.corks = append(t.corks, s)
	}
}

// uncork sends what has been kept back for long enough.
func (t *Table) uncork() {
	n := 0
	for n < len(t.corks) && t.corks[n].uncork <= t.now {
		s := t.corks[n]
		s.uncork = 0
		if s.corked && s.ep != nil && s.kind == connected {
			o := s.ep.SocketOptions()
			o.SetCorkOption(false)
			o.SetCorkOption(true)
		}
		n++
	}
	if n > 0 {
		rest := copy(t.corks, t.corks[n:])
		clear(t.corks[rest:])
		t.corks = t.corks[:rest]
	}
}

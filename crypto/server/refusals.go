// SPDX-License-Identifier: Apache-2.0

package server

import (
	"net"
	"net/netip"
	"sync"
	"time"

	"pno/crypto/audit"
	"pno/crypto/signing"
)

// A refusal costs whoever is refused next to nothing, and must not cost the disk
// more: the first ones of an origin have records and log lines of their own, and
// what follows is counted and told together, once an interval, until the origin
// has been quiet for one. Origins are bounded; those beyond are told as one.

const (
	maxOrigins   = 1024
	otherOrigins = "others" // who it was, when there are more
)

// refusals of one kind of origin.
type refusals struct {
	every  time.Duration
	first  int // of an origin that are recorded one by one
	budget int // of all origins, in an interval

	mu    sync.Mutex
	seen  map[origin]*refused
	spent int // of the budget
	next  time.Time
}

type origin struct {
	who    string // an identity, or an address
	status signing.Status
}

type refused struct {
	single int    // recorded one by one
	more   uint64 // in this interval, without a record
	heard  bool   // in this interval
}

func newRefusals(every time.Duration, first, budget int) *refusals {
	return &refusals{every: every, first: first, budget: budget, seen: map[origin]*refused{}}
}

// note counts a refusal, and tells whether it has a record of its own.
func (r *refusals) note(who string, status signing.Status) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	o := origin{who, status}
	e := r.seen[o]
	if e == nil && len(r.seen) >= maxOrigins {
		o.who = otherOrigins
		e = r.seen[o]
	}
	if e == nil {
		e = new(refused)
		if o.who == otherOrigins {
			e.single = r.first // nobody in particular
		}
		r.seen[o] = e
	}
	e.heard = true
	if e.single < r.first && r.spent < r.budget {
		e.single++
		r.spent++
		return true
	}
	e.more++
	return false
}

// sum ends an interval that is over, or the last one, and returns a record for
// each origin that has more refusals than records.
func (r *refusals) sum(now time.Time, last bool) []audit.Record {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now.Before(r.next) && !last {
		return nil
	}
	r.next, r.spent = now.Add(r.every), 0
	var out []audit.Record
	for o, e := range r.seen {
		if e.more > 0 {
			out = append(out, audit.Record{Time: now, Client: o.who, Status: o.status, More: e.more - 1})
		}
		if !e.heard {
			delete(r.seen, o)
		}
		e.more, e.heard = 0, false
	}
	return out
}

// addressOf is what counts as one origin of strangers: an IPv4 address, or the
// network of an IPv6 host, which may use any address of it.
func addressOf(addr net.Addr) string {
	ap, err := netip.ParseAddrPort(addr.String())
	if err != nil {
		return addr.String()
	}
	a := ap.Addr().Unmap().WithZone("")
	if a.Is4() {
		return a.String()
	}
	return netip.PrefixFrom(a, 64).Masked().String()
}

// refuseStranger records that somebody without a good certificate was refused.
func (s *Server) refuseStranger(addr net.Addr, status signing.Status, message string, reason error) {
	if s.strangers.note(addressOf(addr), status) {
		s.cfg.Log.Warn(message, "address", addr.String(), "reason", reason)
		s.record(audit.Record{Time: time.Now(), Client: addr.String(), Status: status})
	}
}

// refuseClient records what a client was refused; message is for the log, unless
// it is empty.
func (s *Server) refuseClient(r audit.Record, message, reason string) {
	if !s.clients.note(r.Client, r.Status) {
		return
	}
	if message != "" {
		s.cfg.Log.Warn(message, "client", r.Client, "reason", reason)
	}
	s.record(r)
}

// sumRefusals records what came of refusals without a record.
func (s *Server) sumRefusals(now time.Time, last bool) {
	for _, r := range append(s.strangers.sum(now, last), s.clients.sum(now, last)...) {
		s.cfg.Log.Warn("more of the same was refused", "who", r.Client, "status", r.Status.String(), "times", r.More+1)
		s.record(r)
	}
}

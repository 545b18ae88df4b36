// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"pno/internal/attach"
	"pno/offload"
)

const (
	answerTimeout = 10 * time.Second // for hostd
	retryEvery    = time.Second
)

// client is the process's side of one hostd. There is one in a process, unless
// PNO_HOSTD changes, as it does in tests.
type client struct {
	path string

	mu       sync.Mutex // attaching, one at a time; guards the fields below
	ses      atomic.Pointer[session]
	retryAt  time.Time
	refusal  error // why there is no session
	fallback action
	reviving bool
	lost     []*Listener // to be opened again in the next session

	stats  atomic.Pointer[counters]
	logged sync.Map // messages that are said once
}

var (
	clientsMu sync.Mutex
	clients   = map[string]*client{}
)

// theClient returns the client of the hostd that the environment names.
func theClient() *client {
	path := os.Getenv("PNO_HOSTD")
	if path == "" {
		path = attach.DefaultPath
	}
	clientsMu.Lock()
	defer clientsMu.Unlock()
	c := clients[path]
	if c == nil {
		c = &client{path: path, fallback: actKernel}
		c.stats.Store(new(counters))
		clients[path] = c
	}
	return c
}

func (c *client) count(which stat) { c.stats.Load().inc(which) }

func (c *client) warnOnce(msg string, args ...any) {
	if _, said := c.logged.LoadOrStore(msg, true); !said {
		slog.Warn("pno: "+msg, args...)
	}
}

// session returns the session, attached if need be; nil: there is none.
func (c *client) session() *session {
	if s := c.ses.Load(); s != nil && !s.lost.Load() {
		return s
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.ses.Load(); s != nil && !s.lost.Load() {
		return s
	}
	if time.Now().Before(c.retryAt) {
		return nil
	}
	s, err := c.attach()
	if err != nil {
		c.retryAt = time.Now().Add(retryEvery)
		c.refusal = err
		c.warnOnce("no offload: cannot attach to hostd", "hostd", c.path, "reason", err)
		return nil
	}
	old := c.stats.Swap(s.counters)
	if c.ses.Load() == nil {
		old.moveTo(s.counters) // else it is a former session's page, which hostd has added up
	}
	c.ses.Store(s)
	s.run()
	return s
}

// decide asks the policy about a socket. Without an error and a session, the
// socket is the kernel's.
func (c *client) decide(op uint8, at netip.AddrPort) (*session, error) {
	s := c.session()
	if s == nil {
		c.mu.Lock()
		refuse, why := c.fallback == actRefuse, c.refusal
		c.mu.Unlock()
		if refuse {
			c.count(statSocketsRefused)
			return nil, refusalErrno(why)
		}
		c.count(statSocketsKernelNoHostd)
		return nil, nil
	}
	switch s.policy.decide(op, at) {
	case actOffload:
		return s, nil
	case actRefuse:
		c.count(statSocketsRefused)
		return nil, syscall.EACCES
	}
	c.count(statSocketsKernelPolicy)
	return nil, nil
}

func refusalErrno(err error) error {
	var n syscall.Errno
	if errors.As(err, &n) {
		return n
	}
	return syscall.ENETDOWN
}

// refusedError is hostd's answer to a HELLO.
type refusedError struct {
	errno syscall.Errno
	text  string
}

func (e *refusedError) Error() string { return fmt.Sprintf("hostd refuses: %s (%v)", e.text, e.errno) }
func (e *refusedError) Unwrap() error { return e.errno }

// hello makes a connection to hostd and says HELLO on it. With fds the session
// is re-adopted by a hostd that has been started anew.
func (c *client) hello(session uint64, fds ...int) (*attach.Conn, *attach.Packet, error) {
	conn, err := attach.Dial(c.path, answerTimeout)
	if err != nil {
		return nil, nil, err
	}
	m := &attach.Hello{ABIMajor: offload.VersionMajor, ABIMinor: offload.VersionMinor, Session: session}
	attach.SetText(m.Name[:], filepath.Base(os.Args[0]))
	attach.SetText(m.Policy[:], os.Getenv("PNO_POLICY_FILE"))
	p, err := ask(conn, m, 1, fds...)
	if err == nil {
		switch a := p.Msg.(type) {
		case *attach.Welcome:
			return conn, p, nil
		case *attach.Refused:
			if session == 0 && a.Fallback != 0 {
				c.fallback = action(a.Fallback)
			}
			err = &refusedError{syscall.Errno(a.Err), attach.Text(a.Text[:])}
		default:
			err = fmt.Errorf("hostd answered HELLO with a %T: %w", a, attach.ErrMessage)
		}
		p.Close()
	}
	conn.Close()
	return nil, nil, err
}

// ask sends one request and takes its answer.
func ask(conn *attach.Conn, m attach.Message, id uint32, fds ...int) (*attach.Packet, error) {
	_ = conn.SetWriteDeadline(time.Now().Add(answerTimeout))
	_ = conn.SetReadDeadline(time.Now().Add(answerTimeout))
	if err := conn.Send(m, id, fds...); err != nil {
		return nil, err
	}
	p, err := conn.Recv()
	if err != nil {
		return nil, fmt.Errorf("hostd did not answer: %w", err)
	}
	if p.ID != id {
		p.Close()
		return nil, fmt.Errorf("hostd answered request %d for %d: %w", p.ID, id, attach.ErrMessage)
	}
	_ = conn.SetReadDeadline(time.Time{})
	return p, nil
}

// attach makes a session. c.mu is held.
func (c *client) attach() (*session, error) {
	conn, p, err := c.hello(0)
	if err != nil {
		return nil, err
	}
	defer p.Close()
	s, err := newSession(c, conn, p.Msg.(*attach.Welcome), p)
	if err == nil {
		// Sockets inherited by exec are nothing to a Go program: the session
		// of the image before it may end.
		var ready *attach.Packet
		if ready, err = ask(conn, new(attach.Ready), 2); err == nil {
			ready.Close()
			return s, nil
		}
	}
	conn.Close()
	return nil, err
}

// lose notes the listeners of a session that is over, and has them opened
// again when there is another.
func (c *client) lose(listeners []*Listener) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.retryAt = time.Time{}
	c.lost = append(c.lost, listeners...)
	if len(c.lost) > 0 && !c.reviving {
		c.reviving = true
		go c.revive()
	}
}

// revive tries once a second, until every lost listener is back or closed.
func (c *client) revive() {
	for {
		if s := c.session(); s != nil {
			c.mu.Lock()
			list := c.lost
			c.lost = nil
			c.mu.Unlock()
			var failed []*Listener
			for _, l := range list {
				if !l.revive(s) {
					failed = append(failed, l)
				}
			}
			c.mu.Lock()
			c.lost = append(c.lost, failed...)
			c.mu.Unlock()
		}
		c.mu.Lock()
		open := c.lost[:0]
		for _, l := range c.lost {
			if !l.isClosed() {
				open = append(open, l)
			}
		}
		if c.lost = open; len(open) == 0 {
			c.reviving = false
			c.mu.Unlock()
			return
		}
		c.mu.Unlock()
		time.Sleep(retryEvery)
	}
}

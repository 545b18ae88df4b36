// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"pno/offload"
)

// ErrDown is wrapped by Do's error while there is no link, or when it was lost
// before the answer came.
var ErrDown = errors.New("no link to the DPU")

// ErrVersion is wrapped when the DPU speaks another major protocol version.
var ErrVersion = errors.New("the DPU speaks another protocol version")

// RequestError is the DPU's refusal of one request.
type RequestError struct{ Type, Text string }

func (e *RequestError) Error() string { return fmt.Sprintf("the DPU refused %s: %s", e.Type, e.Text) }

// Timing of the link.
const (
	helloTimeout   = 3 * time.Second
	requestTimeout = 5 * time.Second
	pingEvery      = 5 * time.Second
	pingTimeout    = 15 * time.Second // a DPU that is busy is not a dead one
	backoffMin     = 20 * time.Millisecond
	backoffMax     = 2 * time.Second
)

// State of the link.
type State string

// Link states.
const (
	Down    State = "down"
	Up      State = "up"
	Refused State = "refused" // connected, but the DPU's version does not fit
)

// Status is a snapshot of the link.
type Status struct {
	State      State
	Since      time.Time
	Shards     int
	Version    uint32 // the DPU's, major<<16|minor
	Features   uint64
	Generation uint64 // counts links that came up
	Losses     uint64
	LastError  string
}

// Config of a Client.
type Config struct {
	Path     string // of dpud's control socket
	Features uint64 // offered in hello
	Log      *slog.Logger
	Up       func(Status)
	Down     func(generation uint64, reason error)
	Closed   func(session uint64, reason string) // the DPU ended a session by itself
}

// Client is the link. Make it with New.
type Client struct {
	cfg Config

	mu      sync.Mutex
	status  Status
	link    *link         // nil while down
	changed chan struct{} // closed and replaced at every change of status
}

// link is one connection. Its pending table is guarded by Client.mu.
type link struct {
	conn    *net.UnixConn
	wmu     sync.Mutex
	nextID  uint64
	pending map[uint64]chan *offload.Control
}

// New returns a client; Run makes it live.
func New(cfg Config) *Client {
	return &Client{cfg: cfg, status: Status{State: Down, Since: time.Now()}, changed: make(chan struct{})}
}

// Status returns the link's present state.
func (c *Client) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.status
}

// WaitUp waits until the link is up, for at most d. It returns at once, false,
// when the DPU is there but refused.
func (c *Client) WaitUp(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		c.mu.Lock()
		state, changed := c.status.State, c.changed
		c.mu.Unlock()
		if state != Down {
			return state == Up
		}
		select {
		case <-changed:
		case <-timer.C:
			return false
		case <-ctx.Done():
			return false
		}
	}
}

// Run keeps the link until ctx ends.
func (c *Client) Run(ctx context.Context) {
	pause := backoffMin
	for ctx.Err() == nil {
		began := time.Now()
		err := c.once(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > backoffMax {
			pause = backoffMin
		}
		if errors.Is(err, ErrVersion) {
			pause = backoffMax
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
		pause = min(2*pause, backoffMax)
	}
}

// once makes one link and serves it until it is lost.
func (c *Client) once(ctx context.Context) error {
	conn, err := (&net.Dialer{Timeout: helloTimeout}).DialContext(ctx, "unixpacket", c.cfg.Path)
	if err != nil {
		c.failed(fmt.Errorf("connect to dpud: %w", err))
		return err
	}
	l := &link{conn: conn.(*net.UnixConn), pending: make(map[uint64]chan *offload.Control)}
	defer func() { _ = l.conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = l.conn.Close() })
	defer stop()

	answer, err := c.hello(l)
	if err != nil {
		c.failed(err)
		return err
	}
	status := c.came(l, answer)
	c.cfg.Log.Info("DPU link up", "address", c.cfg.Path, "shards", status.Shards, "generation", status.Generation)
	if c.cfg.Up != nil {
		c.cfg.Up(status)
	}
	pings, stopPings := context.WithCancel(ctx)
	go c.ping(pings, l)
	err = c.read(l)
	stopPings()
	c.lost(ctx, l, err)
	return err
}

func (c *Client) hello(l *link) (*offload.Control, error) {
	_ = l.conn.SetDeadline(time.Now().Add(helloTimeout))
	own := uint32(offload.VersionMajor<<16 | offload.VersionMinor)
	if err := l.write(&offload.Control{Type: offload.CtlHello, ID: 1, Version: own, Features: c.cfg.Features}, nil); err != nil {
		return nil, err
	}
	l.nextID = 1
	m, err := receive(l.conn)
	if err != nil {
		return nil, fmt.Errorf("hello to dpud: %w", err)
	}
	if m.ID != 1 || (m.Type != offload.CtlOK && m.Type != offload.CtlError) {
		return nil, fmt.Errorf("hello to dpud: answered by %q: %w", m.Type, offload.ErrControl)
	}
	if m.Version>>16 != offload.VersionMajor && m.Version != 0 {
		return nil, fmt.Errorf("%w: %d.%d, this side speaks %d.%d", ErrVersion,
			m.Version>>16, m.Version&0xffff, offload.VersionMajor, offload.VersionMinor)
	}
	if m.Type == offload.CtlError {
		return nil, fmt.Errorf("%w: %s", ErrVersion, m.Error)
	}
	if m.Shards < 1 || m.Shards > offload.MaxShards {
		return nil, fmt.Errorf("hello to dpud: %d shards: %w", m.Shards, offload.ErrControl)
	}
	_ = l.conn.SetDeadline(time.Time{})
	return m, nil
}

// setStatus is called with mu held.
func (c *Client) setStatus(state State, reason string) {
	if c.status.State != state {
		c.status.State, c.status.Since = state, time.Now()
	}
	c.status.LastError = reason
	close(c.changed)
	c.changed = make(chan struct{})
}

func (c *Client) failed(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	state := Down
	if errors.Is(err, ErrVersion) {
		state = Refused
	}
	if c.status.LastError != err.Error() {
		c.cfg.Log.Warn("no DPU link", "address", c.cfg.Path, "reason", err)
	}
	c.setStatus(state, err.Error())
}

func (c *Client) came(l *link, hello *offload.Control) Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.link = l
	c.status.Shards, c.status.Version, c.status.Features = hello.Shards, hello.Version, hello.Features
	c.status.Generation++
	c.setStatus(Up, "")
	return c.status
}

// lost ends a link. When ctx is over it was this side that ended it, which is no
// loss.
func (c *Client) lost(ctx context.Context, l *link, reason error) {
	if errors.Is(reason, io.EOF) {
		reason = errors.New("dpud closed the connection")
	}
	c.mu.Lock()
	c.link = nil
	for id, ch := range l.pending {
		close(ch)
		delete(l.pending, id)
	}
	stopped := ctx.Err() != nil
	if !stopped {
		c.status.Losses++
	}
	generation := c.status.Generation
	c.setStatus(Down, reason.Error())
	c.mu.Unlock()
	if stopped {
		return
	}
	c.cfg.Log.Warn("DPU link lost", "address", c.cfg.Path, "reason", reason, "generation", generation)
	if c.cfg.Down != nil {
		c.cfg.Down(generation, reason)
	}
}

// read gives each answer to the request that waits for it.
func (c *Client) read(l *link) error {
	for {
		m, err := receive(l.conn)
		if err != nil {
			return err
		}
		if m.Type == offload.CtlSessionClose && m.ID == 0 {
			if c.cfg.Closed != nil {
				c.cfg.Closed(m.Session, m.Reason)
			}
			continue
		}
		if m.Type != offload.CtlOK && m.Type != offload.CtlError {
			return fmt.Errorf("dpud sent %q unasked: %w", m.Type, offload.ErrControl)
		}
		c.mu.Lock()
		ch := l.pending[m.ID]
		delete(l.pending, m.ID)
		c.mu.Unlock()
		if ch != nil {
			ch <- m
		}
	}
}

func (c *Client) ping(ctx context.Context, l *link) {
	tick := time.NewTicker(pingEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		pctx, cancel := context.WithTimeout(ctx, pingTimeout)
		_, err := c.Do(pctx, &offload.Control{Type: offload.CtlPing})
		cancel()
		if errors.Is(err, context.DeadlineExceeded) {
			c.cfg.Log.Warn("dpud does not answer pings, ending the link", "after", pingTimeout)
			_ = l.conn.Close()
			return
		}
	}
}

// Do sends a request, with the descriptors it names, and returns the answer.
// m.ID is set by Do. Without a deadline in ctx it waits requestTimeout.
func (c *Client) Do(ctx context.Context, m *offload.Control, fds ...int) (*offload.Control, error) {
	if _, bounded := ctx.Deadline(); !bounded {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, requestTimeout)
		defer cancel()
	}
	c.mu.Lock()
	l := c.link
	if l == nil {
		c.mu.Unlock()
		return nil, fmt.Errorf("%s: %w", m.Type, ErrDown)
	}
	l.nextID++
	m.ID = l.nextID
	ch := make(chan *offload.Control, 1)
	l.pending[m.ID] = ch
	c.mu.Unlock()

	if err := l.write(m, fds); err != nil {
		c.forget(l, m.ID)
		_ = l.conn.Close() // read notices, and the link is made anew
		return nil, fmt.Errorf("%s: %w: %w", m.Type, ErrDown, err)
	}
	select {
	case answer, ok := <-ch:
		if !ok {
			return nil, fmt.Errorf("%s: %w", m.Type, ErrDown)
		}
		if answer.Type == offload.CtlError {
			return nil, &RequestError{m.Type, answer.Error}
		}
		return answer, nil
	case <-ctx.Done():
		c.forget(l, m.ID)
		return nil, fmt.Errorf("%s: no answer from dpud: %w", m.Type, ctx.Err())
	}
}

func (c *Client) forget(l *link, id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(l.pending, id)
}

func (l *link) write(m *offload.Control, fds []int) error {
	b, err := offload.EncodeControl(m)
	if err != nil {
		return err
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	l.wmu.Lock()
	defer l.wmu.Unlock()
	_ = l.conn.SetWriteDeadline(time.Now().Add(requestTimeout))
	if _, _, err = l.conn.WriteMsgUnix(b, oob, nil); err != nil {
		return fmt.Errorf("write to dpud: %w", err)
	}
	return nil
}

// receive reads one message. dpud sends no descriptors: none can arrive, for
// no room is offered.
func receive(conn *net.UnixConn) (*offload.Control, error) {
	buf := make([]byte, offload.MaxControl+1)
	n, _, flags, _, err := conn.ReadMsgUnix(buf, nil)
	if err != nil {
		return nil, err
	}
	if flags&unix.MSG_TRUNC != 0 {
		return nil, fmt.Errorf("packet cut off: %w", offload.ErrControl)
	}
	return offload.DecodeControl(buf[:n])
}

// SPDX-License-Identifier: Apache-2.0

package server

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"

	"pno/crypto/audit"
	"pno/crypto/rawconn"
	"pno/crypto/signing"
)

// Limits bound what clients hold open; zero values mean the defaults.
type Limits struct {
	Connections       int // of all together; 4096
	ClientConnections int // of one client; 64
	Streams           int // of all together; 8192
	ClientStreams     int // of one client; 64
}

func (l *Limits) complete() {
	for _, f := range []struct {
		at  *int
		def int
	}{{&l.Connections, 4096}, {&l.ClientConnections, 64}, {&l.Streams, 8192}, {&l.ClientStreams, 64}} {
		if *f.at == 0 {
			*f.at = f.def
		}
	}
}

// Who has not shown a certificate yet may have a part of the connections only,
// and one address a part of that. Beyond that the oldest of them is closed for the
// newest: a client shows its certificate at once, and gets in however many say
// nothing.
func (l *Limits) strangers() int   { return max(16, l.Connections/4) }
func (l *Limits) oneStranger() int { return max(16, l.Connections/16) }

// errMadeRoom is why a connection is closed whose place another one needs.
var errMadeRoom = errors.New("its handshake was not done when newer connections needed the room")

// doors counts connections and streams.
type doors struct {
	limits Limits

	mu        sync.Mutex
	open      int                   // connections
	arrivals  uint64                // of connections, since the start
	strange   int                   // connections without a certificate
	strangers map[string]*list.List // of those, *conn by address, in the order of arrival
	clients   map[string]int        // connections with one, by client
	all       int                   // streams
	streams   map[string]int        // by client
}

func newDoors(l Limits) *doors {
	return &doors{limits: l, strangers: map[string]*list.List{}, clients: map[string]int{}, streams: map[string]int{}}
}

// enter counts a new connection, unless clients have them all. Somebody may have
// to go for it, whom the caller closes.
func (d *doors) enter(c *conn) (instead *conn, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	mine := d.strangers[c.address]
	switch {
	case mine != nil && mine.Len() >= d.limits.oneStranger():
		instead = mine.Front().Value.(*conn)
	case d.strange >= d.limits.strangers(), d.open >= d.limits.Connections && d.strange > 0:
		instead = d.oldest()
	case d.open >= d.limits.Connections:
		return nil, fmt.Errorf("there are %d connections", d.open)
	}
	if instead != nil {
		instead.evicted = true
		d.remove(instead)
	}
	if mine = d.strangers[c.address]; mine == nil {
		mine = list.New()
		d.strangers[c.address] = mine
	}
	d.open++
	d.strange++
	d.arrivals++
	c.arrival, c.place = d.arrivals, mine.PushBack(c)
	return instead, nil
}

// oldest is that of the address which has most strangers: one that sends many is
// not to drive out those of others. Locked.
func (d *doors) oldest() *conn {
	var at *conn
	most := 0
	for _, l := range d.strangers {
		c := l.Front().Value.(*conn)
		if l.Len() > most || l.Len() == most && c.arrival < at.arrival {
			at, most = c, l.Len()
		}
	}
	return at
}

// unstrange takes a connection out of those without a certificate; locked.
func (d *doors) unstrange(c *conn) {
	l := d.strangers[c.address]
	l.Remove(c.place)
	if l.Len() == 0 {
		delete(d.strangers, c.address)
	}
	c.place = nil
	d.strange--
}

// remove ends a connection, once; locked.
func (d *doors) remove(c *conn) {
	switch {
	case c.place != nil:
		d.unstrange(c)
	case c.client != "":
		drop(d.clients, c.client)
		c.client = ""
	default:
		return
	}
	d.open--
}

// expel closes the connections whose handshake is not done: the end of a worker
// would wait for them.
func (d *doors) expel() {
	d.mu.Lock()
	var all []*conn
	for _, l := range d.strangers {
		for e := l.Front(); e != nil; e = e.Next() {
			all = append(all, e.Value.(*conn))
		}
	}
	d.mu.Unlock()
	for _, c := range all {
		_ = c.Close() // nothing was said on it
	}
}

// known makes a connection one of a client, unless it has too many.
func (d *doors) known(c *conn, client string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case c.evicted:
		return errMadeRoom
	case c.place == nil:
		return net.ErrClosed
	case d.clients[client] >= d.limits.ClientConnections:
		return fmt.Errorf("the client has %d connections", d.clients[client])
	}
	d.unstrange(c)
	c.client = client
	d.clients[client]++
	return nil
}

func (d *doors) enterStream(client string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.all >= d.limits.Streams:
		return fmt.Errorf("there are %d streams", d.all)
	case d.streams[client] >= d.limits.ClientStreams:
		return fmt.Errorf("the client has %d streams", d.streams[client])
	}
	d.all++
	d.streams[client]++
	return nil
}

func (d *doors) leaveStream(client string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.all--
	drop(d.streams, client)
}

func drop(m map[string]int, key string) {
	if m[key]--; m[key] <= 0 {
		delete(m, key)
	}
}

// listener lets in as many connections as the doors do.
type listener struct {
	net.Listener
	s *Server
}

func (l listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if c, err = rawconn.Wrap(c); err != nil {
			continue // it is closed already
		}
		counted := &conn{Conn: c, doors: l.s.doors, address: addressOf(c.RemoteAddr())}
		instead, err := l.s.doors.enter(counted)
		if err != nil {
			_ = c.Close() // nothing was said on it
			l.s.metrics.limited.WithLabelValues("connections").Inc()
			l.s.refuseStranger(c.RemoteAddr(), signing.Overloaded, "connection refused", err)
			continue
		}
		if instead != nil {
			_ = instead.Close() // its handshake fails, and is recorded
			l.s.metrics.limited.WithLabelValues("strangers").Inc()
		}
		if l.s.draining.Load() {
			_ = counted.Close() // expel may have been before
		}
		return counted, nil
	}
}

// conn is a connection that is counted until it is closed.
type conn struct {
	net.Conn
	doors   *doors
	address string

	// Of the doors.
	arrival uint64
	place   *list.Element // among the strangers
	client  string        // whose it is; neither: it is not counted any more
	evicted bool
}

// Read implements net.Conn.
func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err != nil && errors.Is(err, net.ErrClosed) {
		c.doors.mu.Lock()
		if c.evicted {
			err = errMadeRoom
		}
		c.doors.mu.Unlock()
	}
	return n, err
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.doors.mu.Lock()
	c.doors.remove(c)
	c.doors.mu.Unlock()
	return c.Conn.Close()
}

// doorCreds are the credentials of a listener whose clients are counted.
type doorCreds struct {
	credentials.TransportCredentials
	s *Server
}

func (d doorCreds) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	secure, info, err := d.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		return nil, nil, err
	}
	c, counted := raw.(*conn)
	t, ok := info.(credentials.TLSInfo)
	if !ok {
		return nil, nil, errors.Join(errors.New("not over TLS"), secure.Close())
	}
	client := t.State.PeerCertificates[0].URIs[0].String()
	known := &knownPeer{TLSInfo: t}
	if !counted {
		return secure, known, nil
	}
	switch err := c.doors.known(c, client); {
	case errors.Is(err, errMadeRoom):
		d.s.refuseStranger(raw.RemoteAddr(), signing.Overloaded, "connection refused", err)
		return nil, nil, errors.Join(err, secure.Close())
	case err != nil:
		d.s.metrics.limited.WithLabelValues("client_connections").Inc()
		d.s.refuseClient(audit.Record{Time: time.Now(), Client: client, Status: signing.Overloaded}, "connection refused", err.Error())
		return nil, nil, errors.Join(err, secure.Close())
	}
	return secure, known, nil
}

func (d doorCreds) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("these are credentials of a worker")
}

func (d doorCreds) Clone() credentials.TransportCredentials {
	return doorCreds{d.TransportCredentials.Clone(), d.s}
}

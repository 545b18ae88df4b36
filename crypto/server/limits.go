// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"

	"pno/crypto/audit"
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
// and one address a part of that, or strangers could keep clients out.
func (l *Limits) strangers() int   { return max(16, l.Connections/4) }
func (l *Limits) oneStranger() int { return max(16, l.Connections/16) }

// doors counts connections and streams.
type doors struct {
	limits Limits

	mu        sync.Mutex
	open      int            // connections
	strange   int            // of those, without a certificate
	addresses map[string]int // of those, by address
	clients   map[string]int // connections with one, by client
	strangers map[*conn]struct{}
	all       int            // streams
	streams   map[string]int // by client
}

func newDoors(l Limits) *doors {
	return &doors{limits: l, addresses: map[string]int{}, clients: map[string]int{}, strangers: map[*conn]struct{}{}, streams: map[string]int{}}
}

// enter counts a new connection, unless there are too many.
func (d *doors) enter(address string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.open >= d.limits.Connections:
		return fmt.Errorf("there are %d connections", d.open)
	case d.strange >= d.limits.strangers():
		return fmt.Errorf("there are %d connections whose handshake is not done", d.strange)
	case d.addresses[address] >= d.limits.oneStranger():
		return fmt.Errorf("there are %d connections of this address whose handshake is not done", d.addresses[address])
	}
	d.open++
	d.strange++
	d.addresses[address]++
	return nil
}

// watch remembers a connection until it is one of a client, or closed.
func (d *doors) watch(c *conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.strangers[c] = struct{}{}
}

func (d *doors) forget(c *conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.strangers, c)
}

// expel closes the connections whose handshake is not done: the end of a worker
// would wait for them.
func (d *doors) expel() {
	d.mu.Lock()
	all := slices.Collect(maps.Keys(d.strangers))
	d.mu.Unlock()
	for _, c := range all {
		_ = c.Close() // nothing was said on it
	}
}

// known makes a connection one of a client, unless it has too many.
func (d *doors) known(address, client string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.clients[client] >= d.limits.ClientConnections {
		return fmt.Errorf("the client has %d connections", d.clients[client])
	}
	d.strange--
	drop(d.addresses, address)
	d.clients[client]++
	return nil
}

// leave ends one; client is empty if it never was one of a client.
func (d *doors) leave(address, client string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.open--
	if client != "" {
		drop(d.clients, client)
		return
	}
	d.strange--
	drop(d.addresses, address)
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
		address := addressOf(c.RemoteAddr())
		if err := l.s.doors.enter(address); err != nil {
			_ = c.Close() // nothing was said on it
			l.s.metrics.limited.WithLabelValues("connections").Inc()
			l.s.refuseStranger(c.RemoteAddr(), signing.Overloaded, "connection refused", err)
			continue
		}
		counted := &conn{Conn: c, doors: l.s.doors, address: address}
		l.s.doors.watch(counted)
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

	mu     sync.Mutex
	client string
	over   bool
}

func (c *conn) known(client string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		return net.ErrClosed
	}
	if err := c.doors.known(c.address, client); err != nil {
		return err
	}
	c.client = client
	c.doors.forget(c)
	return nil
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.mu.Lock()
	if !c.over {
		c.over = true
		c.doors.leave(c.address, c.client)
		c.doors.forget(c)
	}
	c.mu.Unlock()
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
	if !counted {
		return secure, info, nil
	}
	if err := c.known(client); err != nil {
		d.s.metrics.limited.WithLabelValues("client_connections").Inc()
		d.s.refuseClient(audit.Record{Time: time.Now(), Client: client, Status: signing.Overloaded}, "connection refused", err.Error())
		return nil, nil, errors.Join(err, secure.Close())
	}
	return secure, info, nil
}

func (d doorCreds) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("these are credentials of a worker")
}

func (d doorCreds) Clone() credentials.TransportCredentials {
	return doorCreds{d.TransportCredentials.Clone(), d.s}
}

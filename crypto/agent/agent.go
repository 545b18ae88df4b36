// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"pno/crypto/client"
	"pno/crypto/rawconn"
	"pno/internal/unixsock"
)

// Socket is one place to listen. Its file has mode 0600 and belongs to UID; that
// user, root and the agent's own are let in.
type Socket struct {
	Path string
	UID  int // -1: the agent's own
}

// Config is an agent.
type Config struct {
	Sockets     []Socket
	Client      *client.Client // stays the caller's
	MaxInflight int            // operations of one connection; 0: 1024
	MaxConns    int            // of all sockets together; 0: 256
	Log         *slog.Logger
}

// Agent serves the provider.
type Agent struct {
	cfg     Config
	stats   Stats
	latency prometheus.Histogram // of operations
	tasks   tasks
	refused refusals

	mu    sync.Mutex
	conns map[*conn]struct{}
	open  sync.WaitGroup
}

// Stats is what an agent counted; the fields may be read at any time.
type Stats struct {
	Connections atomic.Int64 // open
	Refused     atomic.Uint64
	Malformed   atomic.Uint64
	Operations  [16]atomic.Uint64 // by signing.Status
}

// New makes an agent that does not listen yet.
func New(cfg Config) (*Agent, error) {
	if len(cfg.Sockets) == 0 {
		return nil, errors.New("the agent has no socket to listen on")
	}
	if cfg.MaxInflight == 0 {
		cfg.MaxInflight = 1024
	}
	if cfg.MaxConns == 0 {
		cfg.MaxConns = 256
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Agent{cfg: cfg, latency: newLatency(), tasks: newTasks(), conns: map[*conn]struct{}{},
		refused: refusals{log: cfg.Log, every: refusalsEvery}}, nil
}

// Stats returns the counters.
func (a *Agent) Stats() *Stats { return &a.stats }

// Serve listens until ctx ends. Operations that are open then are not answered:
// their connections end, and the clients ask again elsewhere.
func (a *Agent) Serve(ctx context.Context) error {
	var listeners []*net.UnixListener
	closeAll := func() {
		for _, l := range listeners {
			_ = l.Close() // also removes the file
		}
	}
	for _, s := range a.cfg.Sockets {
		l, err := listen(ctx, s)
		if err != nil {
			closeAll()
			return fmt.Errorf("key agent: %w", err)
		}
		listeners = append(listeners, l)
	}
	failed := make(chan error, len(listeners))
	for i, l := range listeners {
		a.open.Add(1)
		go func() {
			defer a.open.Done()
			if err := a.accept(l, a.cfg.Sockets[i]); ctx.Err() == nil {
				failed <- err
			}
		}()
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	closeAll()
	a.mu.Lock()
	for c := range a.conns {
		c.close()
	}
	a.mu.Unlock()
	a.open.Wait()
	a.tasks.end()
	a.refused.end()
	if err != nil {
		return fmt.Errorf("key agent: %w", err)
	}
	return nil
}

func listen(ctx context.Context, s Socket) (*net.UnixListener, error) {
	l, err := unixsock.Listen(ctx, "unixpacket", s.Path, 0o600)
	if err != nil {
		return nil, fmt.Errorf("listen on %w", err)
	}
	if s.UID >= 0 && s.UID != os.Geteuid() {
		if err := os.Chown(s.Path, s.UID, -1); err != nil {
			_ = l.Close() // the owner is the error to tell
			return nil, fmt.Errorf("listen on %s: %w", s.Path, err)
		}
	}
	return l, nil
}

func (a *Agent) accept(l *net.UnixListener, s Socket) error {
	for {
		c, err := l.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		if err != nil { // out of descriptors, most likely: it may pass
			a.cfg.Log.Warn("key agent cannot accept", "path", s.Path, "reason", err)
			time.Sleep(50 * time.Millisecond)
			continue
		}
		peer, err := credentials(c)
		if err == nil {
			err = a.admit(peer, s)
		}
		nc := &conn{a: a, c: c, peer: peer}
		if err == nil {
			nc.c, err = rawconn.Wrap(c)
		}
		if err != nil {
			a.stats.Refused.Add(1)
			a.refused.tell("key agent refused a connection", "path", s.Path, "pid", peer.Pid, "uid", peer.Uid, "reason", err)
			nc.refuse(0, syscall.EACCES, err.Error())
			continue
		}
		if !a.add(nc) {
			a.stats.Refused.Add(1)
			nc.refuse(0, syscall.EUSERS, "too many connections")
			continue
		}
		a.open.Add(1)
		go func() {
			defer a.open.Done()
			nc.serve()
			a.remove(nc)
		}()
	}
}

// credentials are those of the process that connected, from the kernel.
func credentials(c *net.UnixConn) (unix.Ucred, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return unix.Ucred{}, err
	}
	var u *unix.Ucred
	var errOpt error
	if err := raw.Control(func(fd uintptr) { u, errOpt = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return unix.Ucred{}, err
	}
	if errOpt != nil {
		return unix.Ucred{}, fmt.Errorf("ask who connected: %w", errOpt)
	}
	return *u, nil
}

func (a *Agent) admit(peer unix.Ucred, s Socket) error {
	uid := int(peer.Uid)
	if uid == 0 || uid == os.Geteuid() || s.UID >= 0 && uid == s.UID {
		return nil
	}
	return fmt.Errorf("user %d may not use this socket", uid)
}

func (a *Agent) add(c *conn) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.conns) >= a.cfg.MaxConns {
		return false
	}
	a.conns[c] = struct{}{}
	a.stats.Connections.Store(int64(len(a.conns)))
	return true
}

func (a *Agent) remove(c *conn) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.conns, c)
	a.stats.Connections.Store(int64(len(a.conns)))
}

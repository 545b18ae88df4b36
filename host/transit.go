// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"pno/internal/attach"
	"pno/offload"
)

// A listener, or a bound or datagram socket, that is sent by SCM_RIGHTS keeps its
// placeholder, an ordinary socket: those who share it already know it by that.
// While it is only in a message, no session holds it, and the DPU keeps it under
// a token. Whether the
// kernel still has the file, in processes or messages, an epoll instance tells
// that it was added to: it does not count as a reference, and forgets the file
// with the last one.

// Pauses between two looks at a file that no session holds.
const (
	firstLook = time.Millisecond
	lastLook  = 200 * time.Millisecond
)

// transit watches one file.
type transit struct{ epoll *os.File }

func watchTransit(fd int) (t transit, err error) {
	n, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return t, os.NewSyscallError("epoll_create1", err)
	}
	t.epoll = os.NewFile(uintptr(n), "transit")
	if err := unix.EpollCtl(n, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{}); err != nil {
		t.epoll.Close()
		return t, os.NewSyscallError("epoll_ctl", err)
	}
	if there, err := t.exists(); err != nil || !there {
		t.epoll.Close()
		return t, fmt.Errorf("an epoll instance does not tell what is in it: %w", err)
	}
	return t, nil
}

// exists tells whether the kernel still has the file.
func (t transit) exists() (bool, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", t.epoll.Fd()))
	return bytes.Contains(b, []byte("tfd:")), err
}

// parkFile handles REGISTER_SOCKET of such a socket that is about to be sent. fd
// is its placeholder.
func (s *Server) parkFile(x *session, m *attach.RegisterSocket, fd int) {
	k := &parked{token: hex.EncodeToString(m.Token[:]), generation: x.generation, row: rowOf(x, m),
		cookie: m.Cookie, alone: make(chan struct{}, 1)}
	t, err := watchTransit(fd)
	if err != nil {
		s.log.Warn("a socket that is sent to another process is lost if the sender ends first", "reason", err)
		s.wg.Go(func() { s.unpark(k) })
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.parked[m.Cookie]
	kept := old != nil && old.generation == k.generation && old.row.Kind == k.row.Kind
	if kept || len(s.parked) >= maxParked || s.ctx.Err() != nil {
		t.epoll.Close()
		s.wg.Go(func() { s.unpark(k) })
		return
	}
	s.parked[m.Cookie] = k
	old.wake()
	s.wg.Go(func() { s.watchFile(m.Cookie, k, t) })
}

// wake has the watcher of a file look whether somebody has it.
func (k *parked) wake() {
	if k == nil || k.alone == nil {
		return
	}
	select {
	case k.alone <- struct{}{}:
	default:
	}
}

// watchFile waits until no session holds the socket and no process or message
// has its placeholder.
func (s *Server) watchFile(cookie uint64, k *parked, t transit) {
	defer t.epoll.Close()
	for pause := firstLook; ; {
		s.mu.Lock()
		current, held := s.parked[cookie] == k, len(s.holders[cookie]) > 0
		s.mu.Unlock()
		if !current {
			break
		}
		var look <-chan time.Time
		if held {
			pause = firstLook
		} else {
			if there, _ := t.exists(); !there {
				break
			}
			look = time.After(pause)
			pause = min(2*pause, lastLook)
		}
		select {
		case <-look:
		case <-k.alone:
			pause = firstLook
		case <-s.ctx.Done():
			return
		}
	}
	s.mu.Lock()
	if s.parked[cookie] == k {
		delete(s.parked, cookie)
	}
	s.mu.Unlock()
	s.unpark(k)
}

// lookupFile gives a session its handles of a socket that was in a message only.
func (s *Server) lookupFile(ctx context.Context, x *session, k *parked) (attach.SocketInfo, unix.Errno) {
	row := k.row
	for shard, handle := range k.row.Handle {
		if handle == 0 {
			continue
		}
		a, err := s.ask(ctx, &offload.Control{Type: offload.CtlSocketTransfer, Session: x.id, Token: k.token, Shard: shard})
		if err != nil {
			s.log.Warn("socket not transferred", "to", x.id, "shard", shard, "reason", err)
			return row, unix.ENOENT
		}
		row.Handle[shard] = a.Handle
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.addHolder(k.cookie, x, &row)
	s.stats.moved++
	return row, 0
}

// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"encoding/hex"
	"os"

	"golang.org/x/sys/unix"

	"pno/internal/attach"
	"pno/offload"
)

// parked is a socket whose descriptor may be on its way to another process,
// whoever has it now. Of all but connections transit.go tells. A connection's
// placeholder is one end of a Unix socket pair, and this is the other. The kernel counts the placeholder's references,
// in processes and in messages; when the last is gone, the line ends, and the
// DPU is told to keep the connection no longer.
type parked struct {
	token      string
	generation uint64 // of the DPU link
	row        attach.SocketInfo
	line       *os.File      // of a connection
	cookie     uint64        // of others
	alone      chan struct{} // of others: no session holds it any more
}

// maxParked bounds them: each costs a descriptor.
const maxParked = 65536

// park handles REGISTER_SOCKET of a connection. It copies line.
func (s *Server) park(x *session, m *attach.RegisterSocket, line int) unix.Errno {
	if int(m.Shard) >= x.layout.Shards {
		return unix.EINVAL
	}
	k := &parked{token: hex.EncodeToString(m.Token[:]), generation: x.generation, row: m.SocketInfo}
	fd, err := unix.FcntlInt(uintptr(line), unix.F_DUPFD_CLOEXEC, 0)
	if err == nil {
		err = unix.SetNonblock(fd, true)
		k.line = os.NewFile(uintptr(fd), "connection")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil || s.parked[m.Cookie] != nil || len(s.parked) >= maxParked || s.ctx.Err() != nil {
		k.line.Close() // harmless on nil
		s.wg.Go(func() { s.unpark(k) })
		return unix.ENOSPC
	}
	s.parked[m.Cookie] = k
	s.wg.Go(func() { s.watchParked(m.Cookie, k) })
	return 0
}

// watchParked waits until nobody has the placeholder any more. What a program
// writes to it behind the shim's back has nowhere to go.
func (s *Server) watchParked(cookie uint64, k *parked) {
	stop := context.AfterFunc(s.ctx, func() { k.line.Close() })
	defer stop()
	var waste [512]byte
	for {
		if _, err := k.line.Read(waste[:]); err != nil {
			break
		}
	}
	k.line.Close()
	s.mu.Lock()
	delete(s.parked, cookie)
	s.mu.Unlock()
	s.unpark(k)
}

// unpark lets the DPU give a connection up, unless somebody else holds it.
func (s *Server) unpark(k *parked) {
	if s.ctxDone() {
		return // the next hostd's hello ends all
	}
	if _, err := s.ask(context.Background(), &offload.Control{Type: offload.CtlForkDrop, Token: k.token}); err != nil {
		s.log.Debug("connection not released at the DPU", "reason", err)
	}
}

// lookupParked gives a session its handle of such a connection.
func (s *Server) lookupParked(ctx context.Context, x *session, k *parked, proven bool) (attach.SocketInfo, unix.Errno) {
	if !proven {
		return attach.SocketInfo{}, unix.EACCES
	}
	if k.generation != x.generation {
		return attach.SocketInfo{}, unix.ENOENT
	}
	if k.alone != nil {
		return s.lookupFile(ctx, x, k)
	}
	row := k.row
	a, err := s.ask(ctx, &offload.Control{Type: offload.CtlSocketTransfer, Session: x.id, Token: k.token, Shard: int(row.Shard)})
	if err != nil {
		s.log.Warn("connection not transferred", "to", x.id, "shard", row.Shard, "reason", err)
		return attach.SocketInfo{}, unix.ENOENT
	}
	row.Handle = [offload.MaxShards]uint32{}
	row.Handle[row.Shard] = a.Handle
	s.mu.Lock()
	s.stats.moved++
	s.mu.Unlock()
	return row, 0
}

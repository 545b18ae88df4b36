// SPDX-License-Identifier: Apache-2.0

package dpu_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pno/offload"
)

// host is a host process in Go: a session with one channel, and the sockets
// that the tests drive. One goroutine (run) owns the queue pairs; the tests
// talk to it through do.
type host struct {
	t     testing.TB
	agent *agent
	id    uint64
	l     offload.Layout
	mem   []byte
	memfd int
	bells []int
	intr  int                  // of every channel: there is one thread
	kick  int                  // ends a doze for a command
	qps   [2][]*offload.HostQP // by channel and shard

	ended atomic.Bool // the DPU dropped the session

	cmds  chan func()
	quit  chan struct{}
	done  chan struct{}
	sleep bool // wait for the interrupt instead of polling

	serve    func(*hsock) // accepts at once, if set
	served   int
	socks    map[sockKey]*hsock
	tags     map[uint32]chan answer
	next     uint32
	err      error
	claiming int
	current  *offload.HostQP // being drained
	stats    struct{ interrupts, records, timeouts int }
}

type sockKey struct {
	shard  int
	handle uint32
}

type answer struct {
	errno   uint32
	payload []byte
}

// hsock is the host's idea of a socket.
type hsock struct {
	h          *host
	shard      int
	channel    int
	handle     uint32
	rx         []byte
	rxEnd      uint64
	consumed   uint64
	acked      uint64
	tx         uint64
	taken      uint64
	fin        bool
	errno      uint32
	pair       offload.AddrPair
	opened     bool
	accepts    []*hsock
	revoked    bool
	alone      bool
	homeless   bool
	held       uint64 // rx offset up to which the DPU holds the data
	generation uint8  // of the hold
	claimed    *offload.Record
	onData     func()
	datagrams
	standings []standing
	heed      bool // answers Standing
}

var sessionIDs struct {
	sync.Mutex
	n uint64
}

func testLayout(shards int) offload.Layout {
	return offload.Layout{
		Channels: 2, Shards: shards, H2DSize: 1 << 18, D2HSize: 1 << 18,
		RxWindow: 1 << 16, TxWindow: 1 << 16,
	}
}

func newHost(t testing.TB, a *agent, l offload.Layout) *host {
	t.Helper()
	sessionIDs.Lock()
	sessionIDs.n++
	h := &host{
		t: t, agent: a, id: sessionIDs.n, l: l, cmds: make(chan func(), 16), quit: make(chan struct{}),
		done: make(chan struct{}), socks: map[sockKey]*hsock{}, tags: map[uint32]chan answer{}, next: 1,
	}
	sessionIDs.Unlock()
	fd, err := unix.MemfdCreate("session", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	h.memfd = fd
	if err := unix.Ftruncate(fd, int64(l.TotalSize())); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW); err != nil {
		t.Fatal(err)
	}
	if h.mem, err = unix.Mmap(fd, 0, int(l.TotalSize()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		t.Fatal(err)
	}
	fds := []int{fd}
	for range l.Shards {
		e, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		h.bells = append(h.bells, e)
		fds = append(fds, e)
	}
	if h.intr, err = unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	if _, err := a.call(&offload.Control{
		Type: offload.CtlSessionOpen, Session: h.id, Layout: &l,
		Process: &offload.Process{PID: os.Getpid(), Name: "test", Transparent: a.transparent},
	}, fds...); err != nil {
		t.Fatal(err)
	}
	if h.kick, err = unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	h.openChannel(0)
	go h.run()
	t.Cleanup(func() { h.kill() })
	return h
}

// openChannel opens a channel; 1 may be opened while the host runs.
func (h *host) openChannel(n int) {
	h.t.Helper()
	if _, err := h.agent.call(&offload.Control{Type: offload.CtlChannelOpen, Session: h.id, Channel: n}, h.intr); err != nil {
		h.t.Fatal(err)
	}
	var qps []*offload.HostQP
	for s := range h.l.Shards {
		q, err := offload.NewHostQP(h.mem, h.l, n, s)
		if err != nil {
			h.t.Fatal(err)
		}
		qps = append(qps, q)
	}
	if n == 0 {
		h.qps[0] = qps
		return
	}
	h.do(func() { h.qps[n] = qps })
}

// kill ends the process: the agent closes its session.
func (h *host) kill() {
	select {
	case <-h.quit:
		return
	default:
	}
	close(h.quit)
	one := [8]byte{1}
	_, _ = unix.Write(h.kick, one[:])
	<-h.done
	_, _ = h.agent.call(&offload.Control{Type: offload.CtlSessionClose, Session: h.id, Reason: "killed"})
	_ = unix.Munmap(h.mem)
	for _, fd := range append(h.bells, h.memfd, h.intr, h.kick) {
		_ = unix.Close(fd)
	}
}

func (h *host) run() {
	defer close(h.done)
	for {
		busy := false
		for c := range h.qps {
			for s, q := range h.qps[c] {
				n, err := h.drain(s, q)
				if err != nil {
					h.err = err
					return
				}
				busy = busy || n > 0
				h.publish(c, s)
			}
		}
		select {
		case f := <-h.cmds:
			f()
			continue
		case <-h.quit:
			return
		default:
		}
		if busy {
			continue
		}
		if !h.sleep {
			time.Sleep(20 * time.Microsecond)
			continue
		}
		h.doze()
	}
}

// drain takes what a ring holds.
func (h *host) drain(shard int, q *offload.HostQP) (n int, err error) {
	for {
		rec, payload, ok, err := q.Next()
		if err != nil {
			return n, err
		}
		if !ok {
			break
		}
		n++
		h.stats.records++
		if h.claiming == 0 {
			h.current = q
		}
		h.take(shard, rec, payload)
	}
	q.Release()
	return n, nil
}

// doze sleeps as docs/protocol.md tells a host thread to.
func (h *host) doze() {
	all := slices.Concat(h.qps[:]...)
	for _, q := range all {
		if !q.Arm() {
			return
		}
	}
	p := []unix.PollFd{{Fd: int32(h.intr), Events: unix.POLLIN}, {Fd: int32(h.kick), Events: unix.POLLIN}}
	// A signal, as the Go runtime sends them to its threads, ends a doze too.
	switch n, err := unix.Poll(p, 5000); {
	case n > 0:
		var b [8]byte
		if p[0].Revents != 0 {
			_, _ = unix.Read(h.intr, b[:])
			h.stats.interrupts++
		}
		if p[1].Revents != 0 {
			_, _ = unix.Read(h.kick, b[:])
		}
	case n == 0:
		h.stats.timeouts++
	case err != unix.EINTR:
		h.t.Errorf("poll: %v", err)
	}
	for _, q := range all {
		q.Disarm()
	}
}

func (h *host) publish(c, s int) {
	if h.qps[c][s].Publish() {
		one := [8]byte{1}
		_, _ = unix.Write(h.bells[s], one[:])
	}
}

func (h *host) take(shard int, rec offload.Record, payload []byte) {
	k := sockKey{shard, rec.Sock}
	s := h.socks[k]
	switch rec.Op {
	case offload.OpReply:
		if c := h.tags[rec.Seq]; c != nil {
			delete(h.tags, rec.Seq)
			c <- answer{rec.Ack, append([]byte(nil), payload...)}
		}
		return
	case offload.OpAccept:
		c := &hsock{h: h, shard: shard, handle: rec.Sock, opened: true}
		c.pair, _ = offload.GetAddrPair(payload)
		h.socks[k] = c
		if h.serve != nil {
			h.served++
			h.emit(shard, offload.OpAccepted, 0, c.handle, 0, 0, nil)
			h.serve(c)
		} else if l := h.socks[sockKey{shard, rec.Seq}]; l != nil {
			l.accepts = append(l.accepts, c)
		}
		return
	}
	if s == nil {
		return
	}
	switch rec.Op {
	case offload.OpConnected:
		s.pair, _ = offload.GetAddrPair(payload)
		s.opened = true
	case offload.OpData:
		if rec.Seq != uint32(s.rxEnd) && h.qps[1] != nil && h.claiming == 0 {
			// A claim: the rest still lies in the former channel's ring.
			h.claiming++
			for c := range h.qps {
				if q := h.qps[c][shard]; q != h.current {
					_, _ = h.drain(shard, q)
				}
			}
			h.claiming--
		}
		if rec.Seq != uint32(s.rxEnd) {
			h.err = fmt.Errorf("data at %d, want %d", rec.Seq, uint32(s.rxEnd))
		}
		s.rx = append(s.rx, payload...)
		s.rxEnd += uint64(len(payload))
		s.ack(rec.Ack)
		if s.onData != nil {
			s.onData()
		}
	case offload.OpDgram:
		s.takeDgram(rec, payload)
	case offload.OpTxAck:
		s.ack(rec.Ack)
	case offload.OpHeld:
		s.ack(rec.Ack)
		if rec.Flags == s.generation {
			s.held = s.rxEnd + uint64(int64(int32(rec.Seq-uint32(s.rxEnd))))
		}
	case offload.OpFin:
		s.fin = true
		s.ack(rec.Ack)
		if s.onData != nil {
			s.onData()
		}
	case offload.OpError:
		s.errno = rec.Seq
	case offload.OpClaimed:
		r := rec
		s.claimed = &r
	case offload.OpRevoked:
		s.revoked = true
	case offload.OpUnshared:
		s.alone = true
	case offload.OpHomeless:
		s.homeless = true
	case offload.OpStanding:
		s.standings = append(s.standings, standing{rec.Seq, rec.Ack})
		if s.heed {
			s.emit(offload.OpHeard, 0, 0, 0, nil)
		}
	}
}

// emit sends a record on the socket's own channel.
func (s *hsock) emit(op offload.Op, flags uint8, seq, ack uint32, payload []byte) bool {
	return s.h.emitOn(s.channel, s.shard, op, flags, s.handle, seq, ack, payload)
}

func (s *hsock) ack(v uint32) { s.taken += uint64(int32(v - uint32(s.taken))) }

// autoEcho answers each piece of data with itself and the end with a close,
// in the host's goroutine. It is for small messages: it heeds no window.
func (s *hsock) autoEcho() {
	s.onData = func() {
		if n := len(s.rx); n > 0 {
			s.consumed += uint64(n)
			s.emit(offload.OpSend, 0, uint32(s.tx), uint32(s.consumed), s.rx)
			s.tx += uint64(n)
			s.rx = s.rx[:0]
		}
		if s.fin {
			s.emit(offload.OpClose, 0, uint32(s.tx), uint32(s.consumed), nil)
			delete(s.h.socks, sockKey{s.shard, s.handle})
		}
	}
}

// do runs f in the host's goroutine.
func (h *host) do(f func()) {
	c := make(chan struct{})
	h.cmds <- func() { f(); close(c) }
	one := [8]byte{1}
	_, _ = unix.Write(h.kick, one[:])
	select {
	case <-c:
	case <-h.done:
		h.t.Errorf("host has ended: %v", h.err)
	}
}

// until waits for a condition, looked at in the host's goroutine.
func (h *host) until(what string, cond func() bool) {
	h.t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Microsecond) {
		ok := false
		h.do(func() { ok = cond() })
		if ok {
			return
		}
		if h.err != nil {
			h.t.Fatalf("%s: host: %v", what, h.err)
		}
	}
	h.t.Fatalf("%s: not in time", what)
}

func (h *host) emit(shard int, op offload.Op, flags uint8, sock, seq, ack uint32, payload []byte) bool {
	return h.emitOn(0, shard, op, flags, sock, seq, ack, payload)
}

func (h *host) emitOn(c, shard int, op offload.Op, flags uint8, sock, seq, ack uint32, payload []byte) bool {
	b := h.qps[c][shard].Emit(op, flags, sock, seq, ack, len(payload))
	if b == nil {
		return false
	}
	copy(b, payload)
	h.publish(c, shard)
	return true
}

// request sends a record that is answered by a Reply.
func (h *host) request(shard int, op offload.Op, sock, ack uint32, payload []byte) answer {
	h.t.Helper()
	c := make(chan answer, 1)
	h.do(func() {
		tag := h.next
		h.next++
		h.tags[tag] = c
		if !h.emit(shard, op, 0, sock, tag, ack, payload) {
			h.t.Errorf("no ring space for op %d", op)
			c <- answer{errno: ^uint32(0)}
		}
	})
	select {
	case a := <-c:
		return a
	case <-time.After(20 * time.Second):
		h.t.Fatalf("no reply to op %d", op)
	}
	return answer{}
}

func (h *host) handle() (n uint32) {
	h.do(func() { n = offload.HandleHost | h.next; h.next++ })
	return n
}

func (h *host) bind(shard int, addr string, flags uint32) (*hsock, uint32) {
	h.t.Helper()
	s := &hsock{h: h, shard: shard, handle: h.handle()}
	h.do(func() { h.socks[sockKey{shard, s.handle}] = s })
	b := make([]byte, offload.BindReqSize)
	offload.BindReq{Local: offload.AddrFrom(netip.MustParseAddrPort(addr)), Proto: offload.ProtoTCP, Flags: flags}.Put(b)
	a := h.request(shard, offload.OpBind, s.handle, 0, b)
	if a.errno == 0 {
		s.pair.Local, _ = offload.GetAddr(a.payload)
	}
	return s, a.errno
}

// listen binds, listens and subscribes on one shard.
func (h *host) listen(shard int, addr string) *hsock {
	h.t.Helper()
	return h.listenWith(shard, addr, offload.BindReuseAddr)
}

func (h *host) listenWith(shard int, addr string, flags uint32) *hsock {
	h.t.Helper()
	s, errno := h.bind(shard, addr, flags)
	if errno != 0 {
		h.t.Fatalf("bind %s: errno %d", addr, errno)
	}
	if a := h.request(shard, offload.OpListen, s.handle, 128, nil); a.errno != 0 {
		h.t.Fatalf("listen %s: errno %d", addr, a.errno)
	}
	s.subscribe(64)
	return s
}

func (s *hsock) subscribe(limit uint32) {
	s.h.do(func() { s.h.emit(s.shard, offload.OpSubscribe, 0, s.handle, 0, limit, nil) })
}

// accept takes the next announced connection.
func (s *hsock) accept() (c *hsock) {
	s.h.t.Helper()
	s.h.until("accept", func() bool {
		if len(s.accepts) == 0 {
			return false
		}
		c, s.accepts = s.accepts[0], s.accepts[1:]
		s.h.emit(c.shard, offload.OpAccepted, 0, c.handle, 0, 0, nil)
		return true
	})
	return c
}

func (h *host) connect(shard int, peer, local string) *hsock {
	h.t.Helper()
	return h.connectWith(shard, peer, local, 0)
}

func (h *host) connectWith(shard int, peer, local string, flags uint32) *hsock {
	h.t.Helper()
	s := &hsock{h: h, shard: shard, handle: h.handle()}
	req := offload.ConnectReq{Peer: offload.AddrFrom(netip.MustParseAddrPort(peer)), Proto: offload.ProtoTCP, Flags: flags}
	if local != "" {
		req.Local = offload.AddrFrom(netip.MustParseAddrPort(local))
	}
	b := make([]byte, offload.ConnectReqSize)
	req.Put(b)
	h.do(func() {
		h.socks[sockKey{shard, s.handle}] = s
		h.emit(shard, offload.OpConnect, 0, s.handle, 0, 0, b)
	})
	h.until("connect", func() bool { return s.opened || s.errno != 0 })
	return s
}

// write sends all of b, as the window and the ring allow.
func (s *hsock) write(b []byte) error {
	for len(b) > 0 {
		n, dead := 0, false
		s.h.do(func() {
			dead = s.errno != 0
			n = min(len(b), int(uint64(s.h.l.TxWindow)-(s.tx-s.taken)), 16<<10)
			if n == 0 || dead {
				return
			}
			if !s.emit(offload.OpSend, 0, uint32(s.tx), uint32(s.consumed), b[:n]) {
				n = 0
				return
			}
			s.acked = s.consumed
			s.tx += uint64(n)
		})
		if dead {
			return fmt.Errorf("socket error %d", s.errno)
		}
		b = b[n:]
		if n == 0 {
			select {
			case <-s.h.done:
				return errors.New("host has ended")
			case <-time.After(50 * time.Microsecond):
			}
		}
	}
	return nil
}

// read returns what has come, up to len(b), waiting for at least one byte; 0
// at the end of the stream.
func (s *hsock) read(b []byte) (n int, err error) {
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Microsecond) {
		over := false
		s.h.do(func() {
			n = copy(b, s.rx)
			s.rx = s.rx[n:]
			s.consumed += uint64(n)
			if s.consumed-s.acked >= uint64(s.h.l.RxWindow)/4 {
				if s.emit(offload.OpRxAck, 0, 0, uint32(s.consumed), nil) {
					s.acked = s.consumed
				}
			}
			over = n == 0 && (s.fin || s.errno != 0)
		})
		if over {
			if s.errno != 0 {
				return 0, fmt.Errorf("socket error %d", s.errno)
			}
			return 0, nil
		}
		if n > 0 {
			return n, nil
		}
		if s.h.err != nil {
			return 0, s.h.err
		}
	}
	return 0, errors.New("read: nothing came in time")
}

func (s *hsock) readN(n int) ([]byte, error) {
	out := make([]byte, 0, n)
	b := make([]byte, 64<<10)
	for len(out) < n {
		m, err := s.read(b[:min(len(b), n-len(out))])
		if err != nil {
			return out, err
		}
		if m == 0 {
			return out, errors.New("end of stream")
		}
		out = append(out, b[:m]...)
	}
	return out, nil
}

func (s *hsock) close(flags uint8) {
	s.h.do(func() {
		s.emit(offload.OpClose, flags, uint32(s.tx), uint32(s.consumed), nil)
		delete(s.h.socks, sockKey{s.shard, s.handle})
	})
}

func (s *hsock) shutdown(how uint8) {
	s.h.do(func() {
		s.emit(offload.OpShutdown, how, uint32(s.tx), uint32(s.consumed), nil)
	})
}

// SPDX-License-Identifier: Apache-2.0

// Package lane loads the shards of a DPU in this process, one by one: clients
// that cost next to nothing on one side of a virtual wire, a host that answers
// at once on the other side of the rings. What remains is the DPU's.
//
// A lane is the load of one shard: a goroutine on a thread of its own (run),
// whose CPU time can be told from the DPU's. It owns its clients, a queue of
// the wire's far end and a session; nothing is shared between lanes.
package lane

import (
	"fmt"
	"net/netip"
	"runtime"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"pno/dpu"
	"pno/dpu/link"
	"pno/dpu/shard"
	"pno/offload"
)

// lane is the load of one shard.
type lane struct {
	shard   int
	core    int // that it shares with the shard, negative if any
	clients clients
	host    host
	tid     atomic.Int32 // of the thread that it runs on
	stop    atomic.Bool
	done    chan error
}

// run serves both sides until stop, asleep while there is nothing to do.
func (l *lane) run() {
	runtime.LockOSThread()
	l.tid.Store(int32(unix.Gettid()))
	l.done <- l.serve()
}

func (l *lane) serve() error {
	if l.core >= 0 {
		if err := shard.Pin(l.core); err != nil {
			return err
		}
	}
	if err := l.host.listen(l.clients.server); err != nil {
		return err
	}
	for !l.stop.Load() {
		frames, err := l.clients.turn(l.host.listening)
		if err != nil {
			return err
		}
		records, err := l.host.turn()
		if err != nil {
			return err
		}
		if frames+records > 0 || !l.host.qp.Arm() {
			continue
		}
		wait := []unix.PollFd{
			{Fd: int32(l.clients.queue.FD()), Events: unix.POLLIN}, {Fd: int32(l.host.interrupt), Events: unix.POLLIN},
		}
		if err := poll(wait); err != nil {
			return fmt.Errorf("wait for frames and records: %w", err)
		}
		l.host.qp.Disarm()
		if wait[1].Revents != 0 {
			var b [8]byte
			_, _ = unix.Read(l.host.interrupt, b[:]) // the next look at the ring counts
		}
	}
	return nil
}

// poll waits for one of the descriptors, unknown to the Go scheduler, which
// would set other threads to work meanwhile, and have them counted for the DPU's.
// The limit is for the end of the run; a signal is a wake-up like others.
func poll(list []unix.PollFd) error {
	limit := unix.Timespec{Nsec: 1e8}
	_, _, errno := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&list[0])), uintptr(len(list)),
		uintptr(unsafe.Pointer(&limit)), 0, 0, 0)
	if errno != 0 && errno != unix.EINTR {
		return errno
	}
	return nil
}

// host is a process whose sockets send back what they receive.
type host struct {
	qp        *offload.HostQP
	doorbell  int // of the lane's shard
	interrupt int
	mem       []byte
	fds       []int // to be closed
	socks     map[uint32]*sock
	listening bool // the DPU has said so
	closes    bool // a connection, with its answer
}

type sock struct{ sent, consumed uint32 }

const (
	listener  = offload.HandleHost | 1
	tagBind   = 1
	tagListen = 2
)

// openHost opens a session for a lane of a DPU with so many shards.
func openHost(d *dpu.DPU, shard, shards int) (_ host, err error) {
	l := offload.Layout{
		Channels: 1, Shards: shards, H2DSize: 1 << 18, D2HSize: 1 << 18, RxWindow: 1 << 16, TxWindow: 1 << 16,
	}
	h := host{socks: make(map[uint32]*sock)}
	defer func() {
		if err != nil {
			h.close()
		}
	}()
	memory, err := unix.MemfdCreate("session", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return h, fmt.Errorf("make session memory: %w", err)
	}
	h.fds = append(h.fds, memory)
	if err := unix.Ftruncate(memory, int64(l.TotalSize())); err != nil {
		return h, fmt.Errorf("size session memory: %w", err)
	}
	if _, err := unix.FcntlInt(uintptr(memory), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK); err != nil {
		return h, fmt.Errorf("seal session memory: %w", err)
	}
	if h.mem, err = unix.Mmap(memory, 0, int(l.TotalSize()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return h, fmt.Errorf("map session memory: %w", err)
	}
	bells := make([]int, shards)
	for i := range bells {
		if bells[i], err = h.event(); err != nil {
			return h, err
		}
	}
	h.doorbell = bells[shard]
	if h.interrupt, err = h.event(); err != nil {
		return h, err
	}
	if h.qp, err = offload.NewHostQP(h.mem, l, 0, shard); err != nil {
		return h, fmt.Errorf("open rings: %w", err)
	}
	given, err := dups(append([]int{memory, h.interrupt}, bells...))
	if err != nil {
		return h, err
	}
	id := uint64(shard + 1)
	if err := d.OpenSession(id, l, offload.Process{PID: unix.Getpid(), Name: "lane"}, given[0], given[2:]); err != nil {
		_ = unix.Close(given[1])
		return h, fmt.Errorf("open session: %w", err)
	}
	if err := d.OpenChannel(id, 0, given[1]); err != nil {
		return h, fmt.Errorf("open channel: %w", err)
	}
	return h, nil
}

func (h *host) event() (int, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return -1, fmt.Errorf("create eventfd: %w", err)
	}
	h.fds = append(h.fds, fd)
	return fd, nil
}

// dups are descriptors for the DPU, which owns what it is given.
func dups(fds []int) (out []int, err error) {
	for _, fd := range fds {
		n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			for _, one := range out {
				_ = unix.Close(one)
			}
			return nil, fmt.Errorf("duplicate descriptor: %w", err)
		}
		out = append(out, n)
	}
	return out, nil
}

// close gives back what the host has; the DPU must have ended.
func (h *host) close() {
	if h.mem != nil {
		_ = unix.Munmap(h.mem)
	}
	for _, fd := range h.fds {
		_ = unix.Close(fd)
	}
}

// listen asks for a listener. The DPU carries records out in order.
func (h *host) listen(at netip.AddrPort) error {
	b := h.qp.Emit(offload.OpBind, 0, listener, tagBind, 0, offload.BindReqSize)
	if b == nil {
		return errFull
	}
	offload.BindReq{Local: offload.AddrFrom(at), Proto: offload.ProtoTCP, Flags: offload.BindReuseAddr}.Put(b)
	h.qp.Emit(offload.OpListen, 0, listener, tagListen, 4096, 0)
	h.qp.Emit(offload.OpSubscribe, 0, listener, 0, 4096, 0)
	h.publish()
	return nil
}

var errFull = fmt.Errorf("the ring to the DPU is full")

// turn answers what the DPU has delivered, and returns how many records.
func (h *host) turn() (n int, err error) {
	for {
		rec, payload, ok, err := h.qp.Next()
		if err != nil {
			return n, fmt.Errorf("read ring: %w", err)
		}
		if !ok {
			break
		}
		n++
		if err := h.execute(rec, payload); err != nil {
			return n, err
		}
	}
	if n > 0 {
		h.qp.Release()
		h.publish()
	}
	return n, nil
}

func (h *host) execute(rec offload.Record, payload []byte) error {
	switch rec.Op {
	case offload.OpReply:
		if rec.Ack != 0 {
			return fmt.Errorf("request %d: %w", rec.Seq, unix.Errno(rec.Ack))
		}
		h.listening = h.listening || rec.Seq == tagListen
	case offload.OpAccept:
		h.socks[rec.Sock] = &sock{}
		if h.qp.Emit(offload.OpAccepted, 0, rec.Sock, 0, 0, 0) == nil {
			return errFull
		}
	case offload.OpData:
		s := h.socks[rec.Sock]
		if s == nil {
			return fmt.Errorf("data for socket %#x, which there is not", rec.Sock)
		}
		s.consumed += uint32(len(payload))
		b := h.qp.Emit(offload.OpSend, 0, rec.Sock, s.sent, s.consumed, len(payload))
		if b == nil {
			return errFull
		}
		s.sent += uint32(copy(b, payload))
		if h.closes && s.sent == Size {
			if h.qp.Emit(offload.OpClose, 0, rec.Sock, s.sent, s.consumed, 0) == nil {
				return errFull
			}
			delete(h.socks, rec.Sock)
		}
	case offload.OpError, offload.OpFin:
		return fmt.Errorf("socket %#x has ended (%d)", rec.Sock, rec.Seq)
	}
	return nil
}

func (h *host) publish() {
	if h.qp.Publish() {
		one := [8]byte{1}
		_, _ = unix.Write(h.doorbell, one[:]) // a full counter wakes as well
	}
}

// clients are the far end's connections to one shard.
type clients struct {
	queue  link.Queue
	server netip.AddrPort
	me     netip.Addr
	macs   [2][6]byte // the DPU's and the clients' own

	short  bool // a connection is for one request
	ports  []uint16
	used   int // of ports, round and round
	byPort map[uint16]*client
	due    []*client // that have a frame to send
	begun  bool
	frames [64][]byte

	answered atomic.Uint64
}

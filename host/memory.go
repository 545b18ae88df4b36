// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"pno/offload"
)

// memory is hostd's view of a session memory: the header, which only hostd
// writes, and the statistics, which the process writes. The rings are not
// mapped here. The memory is sealed against resizing, so that no access of
// hostd, of the process or of the DPU can fault.
type memory struct {
	page []byte // header and statistics
	size uint64
}

const seals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL

// newMemory makes a session memory and returns its descriptor too, which the
// caller closes once it was passed on.
func newMemory(id uint64, l offload.Layout, spin uint32) (*memory, int, error) {
	fd, err := unix.MemfdCreate("pno-session", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) { // a kernel before 6.3
		fd, err = unix.MemfdCreate("pno-session", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, -1, fmt.Errorf("create session memory: %w", err)
	}
	if err := unix.Ftruncate(fd, int64(l.TotalSize())); err != nil {
		unix.Close(fd)
		return nil, -1, fmt.Errorf("size session memory to %d bytes: %w", l.TotalSize(), err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		unix.Close(fd)
		return nil, -1, fmt.Errorf("seal session memory: %w", err)
	}
	m, err := mapMemory(fd, l.TotalSize())
	if err != nil {
		unix.Close(fd)
		return nil, -1, err
	}
	*m.header() = offload.SessionHeader{
		Magic: offload.Magic, VersionMajor: offload.VersionMajor, VersionMinor: offload.VersionMinor,
		TotalSize: l.TotalSize(), SessionID: id, ChannelStride: l.ChannelStride(),
		H2DSize: l.H2DSize, D2HSize: l.D2HSize, Channels: uint32(l.Channels), Shards: uint32(l.Shards),
		RxWindow: l.RxWindow, TxWindow: l.TxWindow, Status: offload.StatusUp, SpinNanos: spin,
	}
	return m, fd, nil
}

// openMemory maps a session memory that a process brought back. The process
// may have made it up: the seals and the size are checked before the mapping
// is touched, and the layout in the header as if it came over a wire.
func openMemory(fd int) (*memory, offload.Layout, error) {
	var l offload.Layout
	have, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err != nil || have&unix.F_SEAL_SHRINK == 0 {
		return nil, l, errors.New("session memory without its seals")
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Size < offload.ChannelsOff {
		return nil, l, fmt.Errorf("session memory of %d bytes", st.Size)
	}
	m, err := mapMemory(fd, uint64(st.Size))
	if err != nil {
		return nil, l, err
	}
	h := *m.header()
	l = offload.Layout{Channels: int(h.Channels), Shards: int(h.Shards), H2DSize: h.H2DSize, D2HSize: h.D2HSize,
		RxWindow: h.RxWindow, TxWindow: h.TxWindow}
	if err := l.Check(); err != nil || h.Magic != offload.Magic || l.TotalSize() != m.size {
		m.close()
		return nil, l, errors.New("session memory with a header that does not fit it")
	}
	return m, l, nil
}

func mapMemory(fd int, size uint64) (*memory, error) {
	page, err := unix.Mmap(fd, 0, offload.ChannelsOff, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map session memory: %w", err)
	}
	return &memory{page: page, size: size}, nil
}

func (m *memory) close() { _ = unix.Munmap(m.page) }

func (m *memory) header() *offload.SessionHeader {
	return (*offload.SessionHeader)(unsafe.Pointer(&m.page[0]))
}

func (m *memory) setStatus(status uint32) { atomic.StoreUint32(&m.header().Status, status) }

// counters reads the statistics; any value may come.
func (m *memory) counters(n int) []uint64 {
	out := make([]uint64, n)
	for i := range out {
		out[i] = atomic.LoadUint64((*uint64)(unsafe.Pointer(&m.page[offload.StatsOffset+8*i])))
	}
	return out
}

// newEvent makes an eventfd for a doorbell or an interrupt.
func newEvent() (int, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return -1, fmt.Errorf("create eventfd: %w", err)
	}
	return fd, nil
}

// raise wakes whoever sleeps on an interrupt. A full counter is awake already.
// The process has the very same open file: it may have filled the counter and
// cleared O_NONBLOCK, and then the write blocks, but not its caller.
func raise(fd int) {
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return
	}
	go func() {
		defer unix.Close(own)
		if unix.SetNonblock(own, true) == nil {
			one := [8]byte{1}
			_, _ = unix.Write(own, one[:])
		}
	}()
}

// SPDX-License-Identifier: Apache-2.0

package xsk

import (
	"errors"
	"fmt"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// bindPatience is how long a bind waits for the previous owner of the queue:
// the kernel frees a closed socket's pool in a work queue, some time after
// close returned.
const bindPatience = 10 * time.Second

// socket is an AF_XDP socket with its UMEM registered and its rings mapped.
type socket struct {
	fd   int
	umem *umem
	maps [][]byte

	fill       producerRing[uint64]
	completion consumerRing[uint64]
	rx         consumerRing[unix.XDPDesc]
	tx         producerRing[unix.XDPDesc]
}

// newSocket makes an unbound socket with rx and tx frames and rings to match,
// so that no ring can be too short for the frames that pass through it.
func newSocket(frameSize, rx, tx uint32) (s *socket, err error) {
	s = &socket{fd: -1}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
			s = nil
		}
	}()
	if s.fd, err = unix.Socket(unix.AF_XDP, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
		return s, fmt.Errorf("make AF_XDP socket (needs CAP_NET_RAW): %w", err)
	}
	if s.umem, err = newUmem(frameSize, rx, tx); err != nil {
		return s, err
	}
	reg := unix.XDPUmemReg{
		Addr: uint64(uintptr(unsafe.Pointer(unsafe.SliceData(s.umem.mem)))),
		Len:  uint64(len(s.umem.mem)),
		Size: frameSize,
	}
	if err := setsockopt(s.fd, unix.XDP_UMEM_REG, unsafe.Pointer(&reg), unsafe.Sizeof(reg)); err != nil {
		if err == unix.ENOBUFS {
			return s, fmt.Errorf("register %d bytes of frames (raise the locked-memory limit): %w", len(s.umem.mem), err)
		}
		return s, fmt.Errorf("register %d bytes of frames: %w", len(s.umem.mem), err)
	}
	if err := s.mapRings(rx, tx); err != nil {
		return s, err
	}
	s.widen(tx)
	return s, nil
}

func (s *socket) mapRings(rx, tx uint32) error {
	for _, r := range []struct {
		option  int
		entries uint32
	}{
		{unix.XDP_UMEM_FILL_RING, rx}, {unix.XDP_RX_RING, rx},
		{unix.XDP_UMEM_COMPLETION_RING, tx}, {unix.XDP_TX_RING, tx},
	} {
		if err := unix.SetsockoptInt(s.fd, unix.SOL_XDP, r.option, int(r.entries)); err != nil {
			return fmt.Errorf("make ring of %d entries: %w", r.entries, err)
		}
	}
	var off unix.XDPMmapOffsets
	if err := getsockopt(s.fd, unix.XDP_MMAP_OFFSETS, unsafe.Pointer(&off), unsafe.Sizeof(off)); err != nil {
		return fmt.Errorf("read ring offsets: %w", err)
	}
	var err error
	if s.fill.ring, err = mapRing[uint64](s, unix.XDP_UMEM_PGOFF_FILL_RING, off.Fr, rx); err != nil {
		return fmt.Errorf("map fill ring: %w", err)
	}
	if s.completion.ring, err = mapRing[uint64](s, unix.XDP_UMEM_PGOFF_COMPLETION_RING, off.Cr, tx); err != nil {
		return fmt.Errorf("map completion ring: %w", err)
	}
	if s.rx.ring, err = mapRing[unix.XDPDesc](s, unix.XDP_PGOFF_RX_RING, off.Rx, rx); err != nil {
		return fmt.Errorf("map receive ring: %w", err)
	}
	if s.tx.ring, err = mapRing[unix.XDPDesc](s, unix.XDP_PGOFF_TX_RING, off.Tx, tx); err != nil {
		return fmt.Errorf("map transmit ring: %w", err)
	}
	return nil
}

func mapRing[T uint64 | unix.XDPDesc](s *socket, pgoff int64, off unix.XDPRingOffset, entries uint32) (ring[T], error) {
	var zero T
	mem, err := unix.Mmap(s.fd, pgoff, int(off.Desc)+int(entries)*int(unsafe.Sizeof(zero)),
		unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return ring[T]{}, err
	}
	s.maps = append(s.maps, mem)
	return newRing[T](mem, off, entries)
}

// widen lets one system call send a whole batch in copy mode. The kernel stops
// after 32 frames, or when the copies in flight exceed the send buffer; older
// kernels keep the first limit, which costs further calls and nothing else.
func (s *socket) widen(tx uint32) {
	_ = unix.SetsockoptInt(s.fd, unix.SOL_XDP, unix.XDP_MAX_TX_SKB_BUDGET, int(tx))
	const copyOverhead = 1024 // sk_buff and its shared info
	size := int(tx) * (int(s.umem.frameSize) + copyOverhead)
	if unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, size) != nil {
		_ = unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, size)
	}
}

// bind joins the socket to a queue of an interface.
func (s *socket) bind(ifindex int, queue uint32, flags uint16) error {
	return retryBusy(func() error {
		return unix.Bind(s.fd, &unix.SockaddrXDP{Flags: flags, Ifindex: uint32(ifindex), QueueID: queue})
	})
}

// retryBusy repeats fn while the resource is busy, up to bindPatience.
func retryBusy(fn func() error) error {
	pause := time.Millisecond
	for end := time.Now().Add(bindPatience); ; pause = min(2*pause, 50*time.Millisecond) {
		err := fn()
		if !errors.Is(err, unix.EBUSY) || time.Now().After(end) {
			return err
		}
		time.Sleep(pause)
	}
}

// zeroCopy asks how the kernel bound the socket.
func (s *socket) zeroCopy() (bool, error) {
	var opts struct{ flags uint32 }
	if err := getsockopt(s.fd, unix.XDP_OPTIONS, unsafe.Pointer(&opts), unsafe.Sizeof(opts)); err != nil {
		return false, fmt.Errorf("read socket options: %w", err)
	}
	return opts.flags&unix.XDP_OPTIONS_ZEROCOPY != 0, nil
}

func (s *socket) statistics() (st unix.XDPStatistics, err error) {
	if err = getsockopt(s.fd, unix.XDP_STATISTICS, unsafe.Pointer(&st), unsafe.Sizeof(st)); err != nil {
		err = fmt.Errorf("read socket statistics: %w", err)
	}
	return st, err
}

// kickTx makes the kernel look at the transmit ring. The call does not wait, so
// the Go scheduler is not told of it: a batch takes longer than the scheduler
// leaves a processor to a system call, and taking it away and back costs more
// than it could give to others.
func (s *socket) kickTx() unix.Errno {
	_, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(s.fd), 0, 0, unix.MSG_DONTWAIT, 0, 0)
	return errno
}

// kickFill makes the driver look at the fill ring.
func (s *socket) kickFill() unix.Errno {
	_, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(s.fd), 0, 0, unix.MSG_DONTWAIT, 0, 0)
	return errno
}

// close frees everything. The kernel keeps the frames' pages until packets
// still in flight are gone.
func (s *socket) close() error {
	var errs []error
	if s.fd >= 0 {
		errs = append(errs, os.NewSyscallError("close", unix.Close(s.fd)))
		s.fd = -1
	}
	for _, m := range s.maps {
		errs = append(errs, os.NewSyscallError("munmap", unix.Munmap(m)))
	}
	s.maps = nil
	if s.umem != nil {
		errs = append(errs, s.umem.close())
	}
	return errors.Join(errs...)
}

func setsockopt(fd, name int, value unsafe.Pointer, size uintptr) error {
	_, _, errno := unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_XDP, uintptr(name), uintptr(value), size, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// getsockopt fills value, which older kernels may leave shorter than size.
func getsockopt(fd, name int, value unsafe.Pointer, size uintptr) error {
	length := uint32(size)
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_XDP, uintptr(name),
		uintptr(value), uintptr(unsafe.Pointer(&length)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

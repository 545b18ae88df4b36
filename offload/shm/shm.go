// SPDX-License-Identifier: Apache-2.0

// Package shm is the zero-cost Transport: host memory is a memory file that
// both sides of one machine map, doorbells and interrupts are eventfds. The
// simulator builds its PCIe model on top of it.
//
// A Region is the mapping and is shared by the transports of all shards of a
// session; each Transport belongs to one shard's goroutine. Region.Close may
// be called once all its transports are closed.
package shm

import (
	"encoding/binary"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"pno/offload"
)

// Region is a session memory mapped into this process, with the interrupt
// eventfds of its channels.
type Region struct {
	mem []byte

	mu    sync.Mutex // guards opening and closing; Interrupt reads intr without it
	intr  [offload.MaxChannels]atomic.Pointer[interrupt]
	users int
	done  bool
}

// Map maps size bytes of the memory file fd, which must be at least as large.
// The caller keeps fd.
func Map(fd int, size uint64) (*Region, error) {
	var st syscall.Stat_t
	if err := syscall.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("stat session memory: %w", err)
	}
	if uint64(st.Size) < size {
		return nil, fmt.Errorf("session memory has %d bytes, layout wants %d: %w", st.Size, size, offload.ErrLayout)
	}
	mem, err := syscall.Mmap(fd, 0, int(size), syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map session memory: %w", err)
	}
	return &Region{mem: mem}, nil
}

// OpenChannel takes over the interrupt eventfd of a channel.
func (r *Region) OpenChannel(channel int, fd int) error {
	if channel < 0 || channel >= len(r.intr) {
		return fmt.Errorf("open channel %d, want 0 to %d: %w", channel, len(r.intr)-1, offload.ErrBounds)
	}
	if fd < 0 {
		return fmt.Errorf("open channel %d: bad descriptor %d: %w", channel, fd, offload.ErrBounds)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.done {
		_ = syscall.Close(fd)
		return fmt.Errorf("open channel %d: %w", channel, os.ErrClosed)
	}
	if old := r.intr[channel].Swap(newInterrupt(fd)); old != nil {
		old.close()
	}
	return nil
}

// Close unmaps the memory when the last transport is closed, and closes the
// interrupts.
func (r *Region) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.done = true
	return r.releaseLocked()
}

func (r *Region) releaseLocked() error {
	if !r.done || r.users > 0 || r.mem == nil {
		return nil
	}
	for i := range r.intr {
		if old := r.intr[i].Swap(nil); old != nil {
			old.close()
		}
	}
	mem := r.mem
	r.mem = nil
	return syscall.Munmap(mem)
}

// Transport is one shard's access to a Region.
type Transport struct {
	r        *Region
	doorbell int
}

var _ offload.Transport = (*Transport)(nil)

// NewTransport returns a shard's access and takes over its doorbell eventfd
// (-1 for none).
func (r *Region) NewTransport(doorbell int) *Transport {
	r.mu.Lock()
	r.users++
	r.mu.Unlock()
	return &Transport{r: r, doorbell: doorbell}
}

// Post implements offload.Transport: the operations are done on return.
func (t *Transport) Post(ops ...*offload.DMA) error {
	size := uint64(len(t.r.mem))
	for _, op := range ops {
		n := uint64(len(op.Buf))
		if op.Off > size || n > size-op.Off {
			return fmt.Errorf("DMA of %d bytes at %#x of %#x: %w", n, op.Off, size, offload.ErrBounds)
		}
		if op.Line && (n > offload.CacheLine || n%8 != 0 || op.Off%8 != 0) {
			return fmt.Errorf("line access of %d bytes at %#x: %w", n, op.Off, offload.ErrBounds)
		}
	}
	for _, op := range ops {
		at := t.r.mem[op.Off:]
		switch {
		case op.Line && op.Kind == offload.DMARead:
			for i := 0; i < len(op.Buf); i += 8 {
				v := atomic.LoadUint64((*uint64)(unsafe.Pointer(&at[i])))
				binary.LittleEndian.PutUint64(op.Buf[i:], v)
			}
		case op.Line:
			for i := 0; i < len(op.Buf); i += 8 {
				v := binary.LittleEndian.Uint64(op.Buf[i:])
				atomic.StoreUint64((*uint64)(unsafe.Pointer(&at[i])), v)
			}
		case op.Kind == offload.DMARead:
			copy(op.Buf, at)
		default:
			copy(at, op.Buf)
		}
		op.Done = true
	}
	return nil
}

// Poll implements offload.Transport; nothing is ever in flight.
func (t *Transport) Poll() int64 { return 0 }

// Interrupt implements offload.Transport.
func (t *Transport) Interrupt(channel int) {
	if channel < 0 || channel >= len(t.r.intr) {
		return
	}
	if i := t.r.intr[channel].Load(); i != nil {
		i.raise()
	}
}

// DoorbellFD implements offload.Transport.
func (t *Transport) DoorbellFD() int { return t.doorbell }

// DoorbellAck implements offload.Transport.
func (t *Transport) DoorbellAck() {
	if t.doorbell >= 0 {
		readNow(t.doorbell)
	}
}

// Close implements offload.Transport.
func (t *Transport) Close() error {
	var err error
	if t.doorbell >= 0 {
		err = syscall.Close(t.doorbell)
		t.doorbell = -1
	}
	t.r.mu.Lock()
	defer t.r.mu.Unlock()
	t.r.users--
	if e := t.r.releaseLocked(); err == nil {
		err = e
	}
	return err
}

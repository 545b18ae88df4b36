// SPDX-License-Identifier: Apache-2.0

package xsk

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// errFrame means that the kernel named a frame that it does not have.
var errFrame = errors.New("frame address out of range or not with the kernel")

// umem is the memory of a queue's frames. The first rx frames circulate
// through the fill and receive rings, the others through transmit and
// completion, so that a flood in one direction cannot starve the other.
type umem struct {
	mem       []byte
	frameSize uint64
	rx        uint32 // frames below this index are for receiving

	// withKernel holds, for each frame, whether the kernel has it. An address
	// that comes back is believed only if it went out and did not come back yet.
	withKernel []bool
}

func newUmem(frameSize, rx, tx uint32) (*umem, error) {
	mem, err := unix.Mmap(-1, 0, int(frameSize)*int(rx+tx), unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
	if err != nil {
		return nil, fmt.Errorf("map %d frames of %d bytes: %w", rx+tx, frameSize, err)
	}
	return umemOver(mem, frameSize, rx, tx), nil
}

func umemOver(mem []byte, frameSize, rx, tx uint32) *umem {
	return &umem{mem: mem, frameSize: uint64(frameSize), rx: rx, withKernel: make([]bool, rx+tx)}
}

func (u *umem) close() error {
	mem := u.mem
	u.mem = nil
	if mem == nil {
		return nil
	}
	return os.NewSyscallError("munmap", unix.Munmap(mem))
}

// give marks a frame as the kernel's and returns its address.
func (u *umem) give(frame uint32) uint64 {
	u.withKernel[frame] = true
	return uint64(frame) * u.frameSize
}

// received checks a receive descriptor and takes its frame back.
func (u *umem) received(d unix.XDPDesc) (frame uint32, data []byte, err error) {
	index := d.Addr / u.frameSize
	if index >= uint64(u.rx) || !u.withKernel[index] || uint64(d.Len) > u.frameSize-d.Addr%u.frameSize {
		return 0, nil, errFrame
	}
	u.withKernel[index] = false
	return uint32(index), u.mem[d.Addr : d.Addr+uint64(d.Len) : (index+1)*u.frameSize], nil
}

// completed checks an address from the completion ring and takes its frame
// back.
func (u *umem) completed(addr uint64) (frame uint32, err error) {
	index := addr / u.frameSize
	if index < uint64(u.rx) || index >= uint64(len(u.withKernel)) || addr%u.frameSize != 0 || !u.withKernel[index] {
		return 0, errFrame
	}
	u.withKernel[index] = false
	return uint32(index), nil
}

// data returns the first n bytes of a frame that this side owns.
func (u *umem) data(frame uint32, n int) []byte {
	at := uint64(frame) * u.frameSize
	return u.mem[at : at+uint64(n) : at+uint64(n)]
}

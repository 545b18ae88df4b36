// SPDX-License-Identifier: Apache-2.0

// Package asavie is a link driver over the AF_XDP library
// github.com/asavie/xdp: an alternative to package xsk for comparison in a
// lab, on amd64 only. Package xsk is the product's driver, because of what the
// library (archived, v0.3.3) does:
//
//   - Its ring indices are plain loads and stores, its fences commented out.
//     amd64 keeps stores in order and loads in order, which is what the rings
//     need; arm64, the DPU's processor, does not. Open fails there.
//   - Every transmission is a system call, whether the driver wants to be woken
//     or not.
//   - An unexpected errno of sendto, or an address from the kernel that is out
//     of range, panics. This package turns the panic into an error that ends
//     the queue.
//   - It does not tell which frames completed, only which are free: a scan of
//     all frames takes the place of reading the completion ring.
//   - Close leaves the four rings mapped, about 130 KiB a queue.
//   - Its Attach removes whatever program is on the interface, and its own stays
//     there when the process dies; here the program is attached by a link.
//   - Copy or zero-copy is one setting for the whole process, and the frames
//     cannot be shared; neither is used here.
//
// Ownership is as in package xsk: one socket per receive queue, each belonging
// to the goroutine that polls it; Stats and Close from any goroutine, Close
// after the owners have stopped; Open inside the network namespace.
package asavie

// Options says how to open an interface.
type Options struct {
	Interface string
	Queues    int // from receive queue 0 on; 0: all
}

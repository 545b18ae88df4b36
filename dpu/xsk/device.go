// SPDX-License-Identifier: Apache-2.0

package xsk

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"pno/dpu/link"
	"pno/internal/ethtool"
)

// The default of TxFrames suits a burst of two 1 MiB windows of full-sized
// packets. What comes is not ours to pace: RxFrames hold what eight peers may
// have under way by their windows while the loop is busy with something else;
// with 2048 one frame in thirty-five was dropped, and had to be sent again.
const (
	defaultTxFrames = 2048
	defaultRxFrames = 8192
)

// Options says how to open an interface.
type Options struct {
	Interface string

	// Queues is how many of the interface's receive queues to take, from queue
	// 0 on; 0 takes all. Packets of the queues not taken go to the kernel.
	Queues int

	// Copy forbids zero-copy. Otherwise the driver decides, and Info tells.
	Copy bool
	// Generic attaches the XDP program in the generic hook even where the
	// driver has its own. It implies Copy.
	Generic bool
	// PassOther gives frames other than IPv4, IPv6 and ARP to the kernel
	// instead of dropping them.
	PassOther bool
	// Replace removes an XDP program found on the interface.
	Replace bool

	FrameSize int // a power of two from 2048 to the page size; 0: what the MTU needs
	RxFrames  int // per queue, a power of two; 0: 2048
	TxFrames  int // per queue, a power of two; 0: 2048
}

// Device is an interface opened by Open.
type Device struct {
	name     string
	mac      [6]byte
	mtu      int
	steering *steering
	queues   []*queue
	info     Info

	mu     sync.Mutex // of the sockets' descriptors, between Stats, Info and Close
	closed bool
	kernel []unix.XDPStatistics // per queue, as last read
}

// Info says how the kernel runs the device.
type Info struct {
	Interface string
	Native    bool // the XDP program runs in the driver
	FrameSize int
	Queues    []QueueInfo
}

// QueueInfo is one queue's part of Info.
type QueueInfo struct {
	ID       int
	ZeroCopy bool
	Kernel   unix.XDPStatistics
}

var (
	_ link.Device = (*Device)(nil)
	_ link.Queue  = (*queue)(nil)
)

// Open takes over an interface. It must run inside the interface's network
// namespace.
func Open(o Options) (d *Device, err error) {
	l, err := netlink.LinkByName(o.Interface)
	if err != nil {
		return nil, fmt.Errorf("find interface %s: %w", o.Interface, err)
	}
	attrs := l.Attrs()
	d = &Device{name: o.Interface, mtu: attrs.MTU}
	if copy(d.mac[:], attrs.HardwareAddr) != 6 {
		return nil, fmt.Errorf("open %s: hardware address %q is not Ethernet's: %w", o.Interface, attrs.HardwareAddr, unix.EINVAL)
	}
	present, err := receiveQueues(o.Interface)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", o.Interface, err)
	}
	if err := o.complete(d.mtu, present); err != nil {
		return nil, fmt.Errorf("open %s: %w", o.Interface, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("open %s: %w", o.Interface, err), d.Close())
			d = nil
		}
	}()
	if err := clearLeftover(l, o.Replace); err != nil {
		return d, err
	}
	unbound, other := int32(xdpDrop), int32(xdpDrop)
	if o.Queues < present {
		unbound = xdpPass
	}
	if o.PassOther {
		other = xdpPass
	}
	if d.steering, err = loadSteering(present, unbound, other); err != nil {
		return d, err
	}
	if err := d.steering.attach(attrs.Index, o.Generic); err != nil {
		return d, err
	}
	d.info = Info{Interface: o.Interface, Native: d.steering.native, FrameSize: o.FrameSize}
	for id := range o.Queues {
		if err := d.openQueue(attrs.Index, id, o); err != nil {
			return d, fmt.Errorf("queue %d: %w", id, err)
		}
	}
	return d, nil
}

func (d *Device) openQueue(ifindex, id int, o Options) error {
	s, err := newSocket(uint32(o.FrameSize), uint32(o.RxFrames), uint32(o.TxFrames))
	if err != nil {
		return err
	}
	q := newQueue(s, fmt.Sprintf("%s queue %d", d.name, id), d.mtu)
	d.queues = append(d.queues, q) // from here on Close frees the socket
	d.kernel = append(d.kernel, unix.XDPStatistics{})

	flags := uint16(unix.XDP_USE_NEED_WAKEUP)
	if o.Copy || !d.info.Native {
		// With the program in the generic hook, a driver that went into
		// zero-copy mode would have nothing that redirects to the socket.
		flags |= unix.XDP_COPY
	}
	switch err := s.bind(ifindex, uint32(id), flags); {
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("bind socket (another process has the queue): %w", err)
	case errors.Is(err, unix.ENETDOWN):
		return fmt.Errorf("bind socket (bring the interface up first): %w", err)
	case err != nil:
		return fmt.Errorf("bind socket: %w", err)
	}
	zc, err := s.zeroCopy()
	if err != nil {
		return err
	}
	q.copied = !zc
	d.info.Queues = append(d.info.Queues, QueueInfo{ID: id, ZeroCopy: zc})
	return d.steering.register(uint32(id), s.fd)
}

// complete fills in defaults and refuses what cannot work.
func (o *Options) complete(mtu, present int) error {
	if o.Queues == 0 {
		o.Queues = present
	}
	if o.Queues < 0 || o.Queues > present {
		return fmt.Errorf("%d queues of the %d there are: %w", o.Queues, present, unix.EINVAL)
	}
	need, page := mtu+ethernetHeader+unix.XDP_PACKET_HEADROOM, os.Getpagesize()
	if o.FrameSize == 0 {
		for o.FrameSize = 2048; o.FrameSize < need && o.FrameSize < page; o.FrameSize *= 2 {
		}
	}
	if !powerOfTwo(o.FrameSize) || o.FrameSize < 2048 || o.FrameSize > page {
		return fmt.Errorf("frame size %d is not a power of two from 2048 to %d: %w", o.FrameSize, page, unix.EINVAL)
	}
	if need > o.FrameSize {
		return fmt.Errorf("MTU %d does not fit frames of %d bytes, set %d or less: %w",
			mtu, o.FrameSize, o.FrameSize-unix.XDP_PACKET_HEADROOM-ethernetHeader, unix.EMSGSIZE)
	}
	o.RxFrames, o.TxFrames = cmp.Or(o.RxFrames, defaultRxFrames), cmp.Or(o.TxFrames, defaultTxFrames)
	for _, n := range []*int{&o.RxFrames, &o.TxFrames} {
		if !powerOfTwo(*n) || *n < 64 || *n > 1<<16 {
			return fmt.Errorf("%d frames is not a power of two from 64 to 65536: %w", *n, unix.EINVAL)
		}
	}
	return nil
}

func receiveQueues(ifname string) (int, error) {
	c, err := ethtool.Open()
	if err != nil {
		return 0, err
	}
	defer c.Close()
	return c.ReceiveQueues(ifname)
}

func powerOfTwo(n int) bool { return n > 0 && n&(n-1) == 0 }

// Name is the interface's name.
func (d *Device) Name() string { return d.name }

// MAC is the interface's address when it was opened.
func (d *Device) MAC() [6]byte { return d.mac }

// MTU is the interface's MTU when it was opened.
func (d *Device) MTU() int { return d.mtu }

// Queues returns the queues in the order of the interface's receive queues.
func (d *Device) Queues() []link.Queue {
	queues := make([]link.Queue, len(d.queues))
	for i, q := range d.queues {
		queues[i] = q
	}
	return queues
}

// Stats sums the queues' counters and the kernel's.
func (d *Device) Stats() link.Stats {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.readKernel()
	var s link.Stats
	for i, q := range d.queues {
		c, k := &q.count, &d.kernel[i]
		s.RxPackets += c.rxPackets.Load()
		s.RxBytes += c.rxBytes.Load()
		s.TxPackets += c.txPackets.Load()
		s.TxBytes += c.txBytes.Load()
		s.Kicks += c.kicks.Load()
		s.RxDropped += c.rxBad.Load() + k.Rx_dropped + k.Rx_ring_full
		s.TxDropped += c.txBad.Load() + k.Tx_invalid_descs
	}
	return s
}

// Info tells how the kernel runs the device, with its own counters per queue.
func (d *Device) Info() Info {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.readKernel()
	info := d.info
	info.Queues = append([]QueueInfo(nil), d.info.Queues...)
	for i := range info.Queues {
		info.Queues[i].Kernel = d.kernel[i]
	}
	return info
}

// readKernel refreshes the kernel's counters, which stay as they were once the
// sockets are gone.
func (d *Device) readKernel() {
	if d.closed {
		return
	}
	for i, q := range d.queues {
		if st, err := q.sock.statistics(); err == nil {
			d.kernel[i] = st
		}
	}
}

// Close takes the program off the interface, then frees the sockets.
func (d *Device) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil
	}
	d.readKernel()
	d.closed = true
	var errs []error
	if d.steering != nil {
		errs = append(errs, d.steering.close())
	}
	for _, q := range d.queues {
		q.closed.Store(true)
		errs = append(errs, q.sock.close())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close %s: %w", d.name, err)
	}
	return nil
}

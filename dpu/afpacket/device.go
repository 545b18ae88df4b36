// SPDX-License-Identifier: Apache-2.0

package afpacket

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"pno/dpu/link"
	"pno/internal/ethtool"
)

// defaultFrames is the length of each ring when Options do not say.
const defaultFrames = 2048

// Options says how to open an interface.
type Options struct {
	Interface string
	Queues    int // sockets; 0: one per receive queue of the interface
	Frames    int // per queue and direction, a power of two; 0: 2048

	// KeepMerging leaves GRO and LRO as they are. Merged frames are dropped.
	KeepMerging bool
}

// Device is an interface opened by Open.
type Device struct {
	name    string
	mac     [6]byte
	mtu     int
	queues  []*queue
	order   []link.Queue // by receive queue
	merging *merging

	mu     sync.Mutex // of the sockets' descriptors, between Stats and Close
	closed bool
	drops  uint64 // by the kernel; reading them resets the kernel's counter
}

var (
	_ link.Device = (*Device)(nil)
	_ link.Queue  = (*queue)(nil)
)

// Open starts to receive from an interface and to send on it. It must run
// inside the interface's network namespace.
func Open(o Options) (d *Device, err error) {
	l, err := netlink.LinkByName(o.Interface)
	if err != nil {
		return nil, fmt.Errorf("find interface %s: %w", o.Interface, err)
	}
	attrs := l.Attrs()
	d = &Device{name: o.Interface, mtu: attrs.MTU}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("open %s: %w", o.Interface, err), d.Close())
			d = nil
		}
	}()
	if copy(d.mac[:], attrs.HardwareAddr) != 6 {
		return d, fmt.Errorf("hardware address %q is not Ethernet's: %w", attrs.HardwareAddr, unix.EINVAL)
	}
	conn, err := ethtool.Open()
	if err != nil {
		return d, err
	}
	d.merging = &merging{conn: conn, ifname: o.Interface}
	if o.Queues == 0 {
		if o.Queues, err = conn.ReceiveQueues(o.Interface); err != nil {
			return d, err
		}
	}
	if o.Frames == 0 {
		o.Frames = defaultFrames
	}
	if o.Queues < 1 || o.Queues > 256 {
		return d, fmt.Errorf("%d queues, not 1 to 256: %w", o.Queues, unix.EINVAL)
	}
	if o.Frames < 64 || o.Frames > 1<<16 || o.Frames&(o.Frames-1) != 0 {
		return d, fmt.Errorf("%d frames is not a power of two from 64 to 65536: %w", o.Frames, unix.EINVAL)
	}
	if !o.KeepMerging {
		if err := d.merging.off(); err != nil {
			return d, err
		}
	}
	group := fanout{}
	for id := range o.Queues {
		q := &queue{fd: -1, name: fmt.Sprintf("%s queue %d", d.name, id), room: d.mtu + ethernetHeader}
		d.queues = append(d.queues, q) // from here on Close frees the socket
		if err := q.open(attrs.Index, o.Frames); err != nil {
			return d, fmt.Errorf("queue %d: %w", id, err)
		}
		if o.Queues > 1 {
			if err := group.join(q.fd); err != nil {
				return d, fmt.Errorf("queue %d: join fanout group: %w", id, err)
			}
		}
	}
	d.order = inReceiveOrder(d.queues, l.Type())
	return d, nil
}

// open makes the socket with its rings. It is bound last: from then on frames
// arrive.
func (q *queue) open(ifindex, frames int) (err error) {
	// With protocol 0 the socket receives nothing until it is bound.
	if q.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
		q.fd = -1
		return fmt.Errorf("make AF_PACKET socket (needs CAP_NET_RAW): %w", err)
	}
	for _, o := range []struct {
		name   string
		option int
		value  int
	}{
		{"choose ring version", unix.PACKET_VERSION, unix.TPACKET_V2},
		{"ignore own frames", unix.PACKET_IGNORE_OUTGOING, 1},
		{"skip frames that cannot be sent", unix.PACKET_LOSS, 1},
	} {
		if err := unix.SetsockoptInt(q.fd, unix.SOL_PACKET, o.option, o.value); err != nil {
			return fmt.Errorf("%s: %w", o.name, err)
		}
	}
	size := 2048
	for size < q.room+slotOverhead {
		size *= 2
	}
	block := max(blockSize, size, os.Getpagesize())
	total := max(frames*size, block)
	req := unix.TpacketReq{
		Block_size: uint32(block), Block_nr: uint32(total / block),
		Frame_size: uint32(size), Frame_nr: uint32(total / size),
	}
	for _, option := range []int{unix.PACKET_RX_RING, unix.PACKET_TX_RING} {
		if err := unix.SetsockoptTpacketReq(q.fd, unix.SOL_PACKET, option, &req); err != nil {
			return fmt.Errorf("make ring of %d frames of %d bytes: %w", req.Frame_nr, size, err)
		}
	}
	if q.mem, err = unix.Mmap(q.fd, 0, 2*total, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return fmt.Errorf("map rings: %w", err)
	}
	q.rx, q.tx = newSlots(q.mem[:total], size), newSlots(q.mem[total:], size)
	// Frames in flight count against the send buffer; let it hold the ring.
	if unix.SetsockoptInt(q.fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 2*total) != nil {
		_ = unix.SetsockoptInt(q.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 2*total)
	}
	if err := unix.Bind(q.fd, &unix.SockaddrLinklayer{Protocol: networkOrder(unix.ETH_P_ALL), Ifindex: ifindex}); err != nil {
		return fmt.Errorf("bind to interface: %w", err)
	}
	return nil
}

func (q *queue) close() error {
	var errs []error
	if q.fd >= 0 {
		errs = append(errs, os.NewSyscallError("close", unix.Close(q.fd)))
		q.fd = -1
	}
	if q.mem != nil {
		errs = append(errs, os.NewSyscallError("munmap", unix.Munmap(q.mem)))
		q.mem = nil
	}
	return errors.Join(errs...)
}

// Name is the interface's name.
func (d *Device) Name() string { return d.name }

// MAC is the interface's address when it was opened.
func (d *Device) MAC() [6]byte { return d.mac }

// MTU is the interface's MTU when it was opened.
func (d *Device) MTU() int { return d.mtu }

// Queues returns the queues in the order of the interface's receive queues.
func (d *Device) Queues() []link.Queue { return d.order }

// Stats sums the queues' counters and the kernel's.
func (d *Device) Stats() link.Stats {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.readKernel()
	s := link.Stats{RxDropped: d.drops}
	for _, q := range d.queues {
		c := &q.count
		s.RxPackets += c.rxPackets.Load()
		s.RxBytes += c.rxBytes.Load()
		s.TxPackets += c.txPackets.Load()
		s.TxBytes += c.txBytes.Load()
		s.Kicks += c.kicks.Load()
		s.RxDropped += c.rxBad.Load()
		s.TxDropped += c.txBad.Load()
	}
	return s
}

func (d *Device) readKernel() {
	if d.closed {
		return
	}
	for _, q := range d.queues {
		if st, err := unix.GetsockoptTpacketStats(q.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
			d.drops += uint64(st.Drops)
		}
	}
}

// Close frees the sockets and puts merging back as Open found it.
func (d *Device) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil
	}
	d.readKernel()
	d.closed = true
	var errs []error
	for _, q := range d.queues {
		q.closed.Store(true)
		errs = append(errs, q.close())
	}
	if d.merging != nil {
		errs = append(errs, d.merging.close())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close %s: %w", d.name, err)
	}
	return nil
}

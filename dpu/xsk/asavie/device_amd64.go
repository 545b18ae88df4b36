// SPDX-License-Identifier: Apache-2.0

package asavie

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/asavie/xdp"
	ebpflink "github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"pno/dpu/link"
	"pno/internal/ethtool"
)

const (
	ethernetHeader = 14
	ringFrames     = 1024 // per queue and direction
	bindPatience   = 2 * time.Second
)

// device implements link.Device.
type device struct {
	name     string
	index    int
	mac      [6]byte
	mtu      int
	program  *xdp.Program
	attached ebpflink.Link
	queues   []*queue

	mu     sync.Mutex
	closed bool
	kernel []unix.XDPStatistics
}

var (
	_ link.Device = (*device)(nil)
	_ link.Queue  = (*queue)(nil)
)

// Open takes over an interface.
func Open(o Options) (_ link.Device, err error) {
	l, err := netlink.LinkByName(o.Interface)
	if err != nil {
		return nil, fmt.Errorf("find interface %s: %w", o.Interface, err)
	}
	attrs := l.Attrs()
	d := &device{name: o.Interface, index: attrs.Index, mtu: attrs.MTU}
	if copy(d.mac[:], attrs.HardwareAddr) != 6 {
		return nil, fmt.Errorf("open %s: hardware address %q is not Ethernet's: %w", o.Interface, attrs.HardwareAddr, unix.EINVAL)
	}
	if x := attrs.Xdp; x != nil && x.Attached {
		return nil, fmt.Errorf("open %s: XDP program %d is on it already: remove it (ip link set dev %s xdp off): %w",
			o.Interface, x.ProgId, o.Interface, unix.EBUSY)
	}
	if err := d.open(o); err != nil {
		return nil, errors.Join(fmt.Errorf("open %s: %w", o.Interface, err), d.Close())
	}
	return d, nil
}

func (d *device) open(o Options) error {
	conn, err := ethtool.Open()
	if err != nil {
		return err
	}
	defer conn.Close()
	present, err := conn.ReceiveQueues(o.Interface)
	if err != nil {
		return err
	}
	if o.Queues == 0 {
		o.Queues = present
	}
	if o.Queues < 0 || o.Queues > present {
		return fmt.Errorf("%d queues of the %d there are: %w", o.Queues, present, unix.EINVAL)
	}
	frameSize := 2048
	if need := d.mtu + ethernetHeader + unix.XDP_PACKET_HEADROOM; need > 4096 {
		return fmt.Errorf("MTU %d does not fit frames of 4096 bytes: %w", d.mtu, unix.EMSGSIZE)
	} else if need > frameSize {
		frameSize = 4096
	}
	if d.program, err = xdp.NewProgram(present); err != nil {
		return fmt.Errorf("load XDP program: %w", err)
	}
	d.attached, err = ebpflink.AttachXDP(ebpflink.XDPOptions{Program: d.program.Program, Interface: d.index})
	if err != nil {
		return fmt.Errorf("attach XDP program: %w", err)
	}
	for id := range o.Queues {
		sock, err := d.socket(id, frameSize)
		if err != nil {
			return fmt.Errorf("queue %d: %w", id, err)
		}
		d.queues = append(d.queues, newQueue(sock, fmt.Sprintf("%s queue %d", d.name, id), d.mtu, frameSize))
		d.kernel = append(d.kernel, unix.XDPStatistics{})
		if err := d.program.Register(id, sock.FD()); err != nil {
			return fmt.Errorf("register socket of queue %d: %w", id, err)
		}
	}
	return nil
}

// socket makes a bound socket, waiting for the kernel to free the previous
// one. The library formats errno into its error, so that only the text tells.
func (d *device) socket(id, frameSize int) (*xdp.Socket, error) {
	options := &xdp.SocketOptions{
		NumFrames: 2 * ringFrames, FrameSize: frameSize,
		FillRingNumDescs: ringFrames, CompletionRingNumDescs: ringFrames,
		RxRingNumDescs: ringFrames, TxRingNumDescs: ringFrames,
	}
	for end := time.Now().Add(bindPatience); ; time.Sleep(5 * time.Millisecond) {
		sock, err := xdp.NewSocket(d.index, id, options)
		if err == nil {
			// Best effort: without it a kick sends 32 frames at most.
			_ = unix.SetsockoptInt(sock.FD(), unix.SOL_XDP, unix.XDP_MAX_TX_SKB_BUDGET, ringFrames)
			_ = unix.SetsockoptInt(sock.FD(), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, ringFrames*(frameSize+1024))
			return sock, nil
		}
		if !strings.Contains(err.Error(), unix.EBUSY.Error()) || time.Now().After(end) {
			return nil, err
		}
	}
}

func (d *device) Name() string { return d.name }
func (d *device) MAC() [6]byte { return d.mac }
func (d *device) MTU() int     { return d.mtu }

func (d *device) Queues() []link.Queue {
	queues := make([]link.Queue, len(d.queues))
	for i, q := range d.queues {
		queues[i] = q
	}
	return queues
}

func (d *device) Stats() link.Stats {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.readKernel()
	var s link.Stats
	for i, q := range d.queues {
		s.RxPackets += q.rxPackets.Load()
		s.RxBytes += q.rxBytes.Load()
		s.TxPackets += q.txPackets.Load()
		s.TxBytes += q.txBytes.Load()
		s.Kicks += q.kicks.Load()
		s.RxDropped += d.kernel[i].Rx_dropped + d.kernel[i].Rx_ring_full
		s.TxDropped += q.txDropped.Load() + d.kernel[i].Tx_invalid_descs
	}
	return s
}

func (d *device) readKernel() {
	if d.closed {
		return
	}
	for i, q := range d.queues {
		if st, err := q.sock.Stats(); err == nil {
			d.kernel[i] = st.KernelStats
		}
	}
}

func (d *device) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil
	}
	d.readKernel()
	d.closed = true
	var errs []error
	if d.attached != nil {
		errs = append(errs, d.attached.Close())
	}
	if d.program != nil {
		errs = append(errs, d.program.Close())
	}
	for _, q := range d.queues {
		q.closed.Store(true)
		errs = append(errs, q.sock.Close())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close %s: %w", d.name, err)
	}
	return nil
}

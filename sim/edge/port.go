// SPDX-License-Identifier: Apache-2.0

package edge

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/stack/gro"

	"pno/dpu/link"
	"pno/sim/wire"
)

const (
	batch = 64
	// maxBacklog bounds the packets that wait for the wire. TCP's windows keep
	// it far shorter, a flood of anything else is cut.
	maxBacklog = 16384
)

// port is the edge's network interface: a gVisor link endpoint over one queue
// of the wire.
type port struct {
	dev   *wire.Device
	queue link.Queue
	mac   tcpip.LinkAddress
	mtu   atomic.Uint32

	dispatcher atomic.Pointer[dispatcherBox]
	wake       *os.File // a duplicate of the queue's FD, in the runtime's poller
	stopped    sync.WaitGroup

	mu      sync.Mutex // guards the queue's transmit half and backlog
	backlog []*stack.PacketBuffer
	lost    uint64
}

type dispatcherBox struct{ stack.NetworkDispatcher }

var (
	_ stack.LinkEndpoint = (*port)(nil)
	_ stack.GSOEndpoint  = (*port)(nil)
)

func newPort(dev *wire.Device) (*port, error) {
	mac := dev.MAC()
	p := &port{dev: dev, queue: dev.Queues()[0], mac: tcpip.LinkAddress(mac[:])}
	p.mtu.Store(uint32(dev.MTU()))
	fd, err := unix.FcntlInt(uintptr(p.queue.FD()), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate wake-up descriptor of %s: %w", dev.Name(), err)
	}
	p.wake = os.NewFile(uintptr(fd), dev.Name())
	return p, nil
}

// start runs the receive loop until stop.
func (p *port) start() error {
	raw, err := p.wake.SyscallConn()
	if err != nil {
		return fmt.Errorf("watch %s: %w", p.dev.Name(), err)
	}
	p.stopped.Go(func() { p.receive(raw) })
	return nil
}

// stop ends the receive loop and waits for it.
func (p *port) stop() {
	_ = p.wake.Close()
	p.stopped.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, pkt := range p.backlog {
		pkt.DecRef()
	}
	p.backlog = nil
}

func (p *port) receive(raw syscall.RawConn) {
	var merge gro.GRO
	merge.Init(true)
	frames := make([][]byte, batch)
	for {
		var n int
		var failed error
		// The function runs when the descriptor may have become readable; as
		// long as it answers false the goroutine is parked.
		err := raw.Read(func(uintptr) bool {
			p.retry()
			n, failed = p.queue.Recv(frames)
			return n > 0 || failed != nil
		})
		if err != nil || failed != nil {
			return
		}
		if box := p.dispatcher.Load(); box != nil {
			merge.Dispatcher = box.NetworkDispatcher
			for _, f := range frames[:n] {
				deliver(&merge, f)
			}
			merge.Flush()
		}
		p.queue.Release()
	}
}

func deliver(merge *gro.GRO, frame []byte) {
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(frame)})
	defer pkt.DecRef()
	hdr, ok := pkt.LinkHeader().Consume(header.EthernetMinimumSize)
	if !ok {
		return
	}
	eth := header.Ethernet(hdr)
	dst := eth.DestinationAddress()
	switch {
	case dst == header.EthernetBroadcastAddress:
		pkt.PktType = tcpip.PacketBroadcast
	case header.IsMulticastEthernetAddress(dst):
		pkt.PktType = tcpip.PacketMulticast
	}
	pkt.NetworkProtocolNumber = eth.Type()
	merge.Enqueue(pkt)
}

// WritePackets implements stack.LinkEndpoint. Packets that find the wire full
// wait in the backlog, in order, until the other end has released frames.
func (p *port) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, pkt := range pkts.AsSlice() {
		if len(p.backlog) > 0 || !p.transmit(pkt) {
			if len(p.backlog) >= maxBacklog {
				p.lost++
				continue
			}
			p.backlog = append(p.backlog, pkt.IncRef())
		}
		n++
	}
	return p.flushed(n)
}

func (p *port) flushed(n int) (int, tcpip.Error) {
	if err := p.queue.Flush(); errors.Is(err, link.ErrClosed) {
		return 0, &tcpip.ErrClosedForSend{}
	}
	return n, nil
}

// retry sends what the backlog holds, as far as the wire takes it.
func (p *port) retry() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.backlog) == 0 {
		return
	}
	sent := 0
	for _, pkt := range p.backlog {
		if !p.transmit(pkt) {
			break
		}
		pkt.DecRef()
		sent++
	}
	left := copy(p.backlog, p.backlog[sent:])
	clear(p.backlog[left:])
	p.backlog = p.backlog[:left]
	_, _ = p.flushed(0)
}

// transmit copies a packet, with its Ethernet header, to a frame of the wire.
func (p *port) transmit(pkt *stack.PacketBuffer) bool {
	buf := p.queue.TxAlloc()
	if buf == nil {
		return false
	}
	n := 0
	views, offset := pkt.AsViewList()
	for v := views.Front(); v != nil; v = v.Next() {
		n += copy(buf[n:], v.AsSlice()[offset:])
		offset = 0
	}
	p.queue.TxCommit(n)
	return true
}

// AddHeader implements stack.LinkEndpoint.
func (p *port) AddHeader(pkt *stack.PacketBuffer) {
	eth := header.Ethernet(pkt.LinkHeader().Push(header.EthernetMinimumSize))
	eth.Encode(&header.EthernetFields{
		SrcAddr: p.mac,
		DstAddr: pkt.EgressRoute.RemoteLinkAddress,
		Type:    pkt.NetworkProtocolNumber,
	})
}

// ParseHeader implements stack.LinkEndpoint.
func (p *port) ParseHeader(pkt *stack.PacketBuffer) bool {
	_, ok := pkt.LinkHeader().Consume(header.EthernetMinimumSize)
	return ok
}

// Attach implements stack.LinkEndpoint.
func (p *port) Attach(d stack.NetworkDispatcher) {
	if d == nil {
		p.dispatcher.Store(nil)
		return
	}
	p.dispatcher.Store(&dispatcherBox{d})
}

// IsAttached implements stack.LinkEndpoint.
func (p *port) IsAttached() bool { return p.dispatcher.Load() != nil }

// MTU implements stack.LinkEndpoint.
func (p *port) MTU() uint32 { return p.mtu.Load() }

// SetMTU implements stack.LinkEndpoint.
func (p *port) SetMTU(mtu uint32) { p.mtu.Store(min(mtu, uint32(p.dev.MTU()))) }

// MaxHeaderLength implements stack.LinkEndpoint.
func (p *port) MaxHeaderLength() uint16 { return header.EthernetMinimumSize }

// LinkAddress implements stack.LinkEndpoint.
func (p *port) LinkAddress() tcpip.LinkAddress { return p.mac }

// SetLinkAddress implements stack.LinkEndpoint: the wire's end keeps its own.
func (p *port) SetLinkAddress(tcpip.LinkAddress) {}

// Capabilities implements stack.LinkEndpoint.
func (p *port) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityResolutionRequired
}

// GSOMaxSize implements stack.GSOEndpoint.
func (p *port) GSOMaxSize() uint32 { return stack.GVisorGSOMaxSize }

// SupportedGSO implements stack.GSOEndpoint: the stack cuts segments itself,
// after it has walked its own layers once for many of them.
func (p *port) SupportedGSO() stack.SupportedGSO { return stack.GVisorGSOSupported }

// ARPHardwareType implements stack.LinkEndpoint.
func (p *port) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareEther }

// Wait implements stack.LinkEndpoint.
func (p *port) Wait() { p.stopped.Wait() }

// Close implements stack.LinkEndpoint: Edge.Close stops the port.
func (p *port) Close() {}

// SetOnCloseAction implements stack.LinkEndpoint.
func (p *port) SetOnCloseAction(func()) {}

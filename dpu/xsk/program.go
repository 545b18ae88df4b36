// SPDX-License-Identifier: Apache-2.0

package xsk

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Verdicts of an XDP program, enum xdp_action of linux/bpf.h.
const (
	xdpDrop = 1
	xdpPass = 2
)

// Offsets into struct xdp_md of linux/bpf.h.
const (
	mdData    = 0
	mdDataEnd = 4
	mdRxQueue = 16
)

// steering is the XDP program on an interface and the map by which it finds
// the socket of each receive queue.
type steering struct {
	sockets *ebpf.Map
	program *ebpf.Program
	link    link.Link
	native  bool
}

// instructions redirect IPv4, IPv6 and ARP to the socket of the receive queue.
// A queue without a socket gets the verdict unbound, other frames get other.
func instructions(socketsFD int, unbound, other int32) asm.Instructions {
	return asm.Instructions{
		asm.LoadMem(asm.R2, asm.R1, mdData, asm.Word),
		asm.LoadMem(asm.R3, asm.R1, mdDataEnd, asm.Word),
		asm.Mov.Reg(asm.R4, asm.R2),
		asm.Add.Imm(asm.R4, ethernetHeader),
		asm.JGT.Reg(asm.R4, asm.R3, "other"),
		asm.LoadMem(asm.R5, asm.R2, 12, asm.Half),
		asm.HostTo(asm.BE, asm.R5, asm.Half),
		asm.JEq.Imm(asm.R5, unix.ETH_P_IP, "redirect"),
		asm.JEq.Imm(asm.R5, unix.ETH_P_IPV6, "redirect"),
		asm.JEq.Imm(asm.R5, unix.ETH_P_ARP, "redirect"),

		asm.Mov.Imm(asm.R0, other).WithSymbol("other"),
		asm.Return(),

		asm.LoadMem(asm.R2, asm.R1, mdRxQueue, asm.Word).WithSymbol("redirect"),
		asm.LoadMapPtr(asm.R1, socketsFD),
		asm.Mov.Imm(asm.R3, unbound),
		asm.FnRedirectMap.Call(),
		asm.Return(),
	}
}

func loadSteering(queues int, unbound, other int32) (*steering, error) {
	sockets, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: "pno_sockets", Type: ebpf.XSKMap, KeySize: 4, ValueSize: 4, MaxEntries: uint32(queues),
	})
	if err != nil {
		return nil, fmt.Errorf("make socket map: %w", err)
	}
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "pno_steer", Type: ebpf.XDP, License: "Apache-2.0",
		Instructions: instructions(sockets.FD(), unbound, other),
	})
	if err != nil {
		sockets.Close()
		return nil, fmt.Errorf("load XDP program: %w", err)
	}
	return &steering{sockets: sockets, program: program}, nil
}

// attach puts the program on the interface: in the driver where it can, else
// in the kernel's generic hook, which works everywhere and costs an sk_buff a
// packet. The program goes away with the process, whatever ends it.
func (s *steering) attach(ifindex int, generic bool) (err error) {
	flags := link.XDPDriverMode
	if generic {
		flags = link.XDPGenericMode
	}
	err = retryBusy(func() error {
		s.link, err = link.AttachXDP(link.XDPOptions{Program: s.program, Interface: ifindex, Flags: flags})
		return err
	})
	switch {
	case err == nil:
		s.native = !generic
		return nil
	case generic:
		return fmt.Errorf("attach XDP program: %w", err)
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("attach XDP program (another owns the interface): %w", err)
	}
	if err2 := s.attach(ifindex, true); err2 != nil {
		return errors.Join(fmt.Errorf("in the driver: %w", err), err2)
	}
	return nil
}

// register sends the packets of a receive queue to a socket.
func (s *steering) register(queue uint32, fd int) error {
	if err := s.sockets.Put(queue, uint32(fd)); err != nil {
		return fmt.Errorf("register socket of queue %d: %w", queue, err)
	}
	return nil
}

func (s *steering) close() error {
	var errs []error
	if s.link != nil {
		errs = append(errs, s.link.Close())
	}
	return errors.Join(append(errs, s.program.Close(), s.sockets.Close())...)
}

// clearLeftover looks for an XDP program that is on the interface already. It
// takes the packets away from everyone else, so it is an error unless the
// caller asked to replace it.
func clearLeftover(l netlink.Link, replace bool) error {
	attrs := l.Attrs()
	if attrs.Xdp == nil || !attrs.Xdp.Attached {
		return nil
	}
	if !replace {
		return fmt.Errorf("XDP program %d is on %s already: remove it (ip link set dev %s xdp off), or ask to replace it: %w",
			attrs.Xdp.ProgId, attrs.Name, attrs.Name, unix.EBUSY)
	}
	mode := 0
	switch attrs.Xdp.AttachMode {
	case nl.XDP_ATTACHED_DRV:
		mode = unix.XDP_FLAGS_DRV_MODE
	case nl.XDP_ATTACHED_SKB:
		mode = unix.XDP_FLAGS_SKB_MODE
	case nl.XDP_ATTACHED_HW:
		mode = unix.XDP_FLAGS_HW_MODE
	}
	if err := netlink.LinkSetXdpFdWithFlags(l, -1, mode); err != nil {
		return fmt.Errorf("remove XDP program %d from %s: %w", attrs.Xdp.ProgId, attrs.Name, err)
	}
	return nil
}

// SPDX-License-Identifier: Apache-2.0

// Package ethtool reads and sets the few properties of network interfaces
// that the link drivers depend on, through the ethtool ioctl.
package ethtool

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Conn reaches the interfaces of the network namespace it was opened in, from
// any thread. Its methods may be called concurrently.
type Conn struct{ fd int }

// Open makes a Conn in the calling thread's network namespace.
func Open() (*Conn, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make ethtool socket: %w", err)
	}
	return &Conn{fd}, nil
}

// Close frees the connection.
func (c *Conn) Close() error {
	return os.NewSyscallError("close", unix.Close(c.fd))
}

// value is struct ethtool_value of linux/ethtool.h.
type value struct{ cmd, data uint32 }

// channels is struct ethtool_channels of linux/ethtool.h.
type channels struct {
	cmd                               uint32
	_, _, _, _                        uint32 // the most there could be
	rxCount, txCount, other, combined uint32
}

// request is struct ifreq with its data pointer in use.
type request struct {
	name [unix.IFNAMSIZ]byte
	data unsafe.Pointer
	_    [16]byte
}

func (c *Conn) ioctl(ifname string, data unsafe.Pointer) error {
	req := request{data: data}
	copy(req.name[:unix.IFNAMSIZ-1], ifname)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(c.fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req)))
	if errno != 0 {
		return errno
	}
	return nil
}

// Get reads one of the values with a simple get command, such as
// unix.ETHTOOL_GGRO.
func (c *Conn) Get(ifname string, cmd uint32) (uint32, error) {
	v := value{cmd: cmd}
	err := c.ioctl(ifname, unsafe.Pointer(&v))
	return v.data, err
}

// Set writes one of the values with a simple set command.
func (c *Conn) Set(ifname string, cmd, data uint32) error {
	return c.ioctl(ifname, unsafe.Pointer(&value{cmd, data}))
}

// ReceiveQueues is how many receive queues an interface uses now. One that
// cannot say has one.
func (c *Conn) ReceiveQueues(ifname string) (int, error) {
	ch := channels{cmd: unix.ETHTOOL_GCHANNELS}
	switch err := c.ioctl(ifname, unsafe.Pointer(&ch)); err {
	case nil:
		return max(1, int(ch.rxCount+ch.combined)), nil
	case unix.EOPNOTSUPP:
		return 1, nil
	default:
		return 0, fmt.Errorf("count receive queues of %s: %w", ifname, err)
	}
}
